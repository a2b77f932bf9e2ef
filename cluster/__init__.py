"""Where callables run.

base.py       what an executor promises, and the events it reports
inline.py     the same process, one task after another
ray_pool.py   Ray actors, each pinned to a core or owning a share of a GPU
ray_start.py  reach or start a Ray: local, remote, and what to say when it does not answer
jobs.py       jobs on a cluster elsewhere: submit, list, follow, stop
wanted.py     what a person wants of a cluster elsewhere, and which values can be had
manifests.py  files for `ray up`, KubeRay and Slurm with those values, made of templates/
"""
