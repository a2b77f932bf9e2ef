"""Everything kept: finished work, the tables of results, data and its division, the run history.

artifacts.py   folders named by task key, written whole or not at all, checked when read
tables.py      Parquet schemas, part files named by task key, queries over them
datasets.py    name -> arrays, class count and content hash
splits.py      seeded, disjoint data roles of a dataset
invariants.py  the checks that no row leaked from one role into another
tracking.py    the tables' rows as runs in MLflow, rebuildable from them
mirror.py      rows on their way to MLflow while a run goes on, and what has arrived
"""
