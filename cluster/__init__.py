"""Where callables run.

base.py      what an executor promises, and the events it reports
inline.py    the same process, one task after another
ray_pool.py  Ray actors, each pinned to a core or owning a share of a GPU
"""
