"""Everything kept: finished work, the tables of results, data and its division, the run history.

artifacts.py   folders named by task key, written whole or not at all, checked when read
tables.py      Parquet schemas, part files named by task key, queries over them
datasets.py    name -> arrays, class count and content hash
splits.py      seeded, disjoint data roles of a dataset
tracking.py    a mirror of the tables in MLflow, rebuildable from them
"""
