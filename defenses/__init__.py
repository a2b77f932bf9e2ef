"""Defenses: what an answer may keep to itself. One file each; `base.py` holds the seam."""
