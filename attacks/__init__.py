"""Attacks: what an answer gives away. One file each; `base.py` holds the seam."""
