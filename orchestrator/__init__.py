"""What to run, and what a person sees of it.

cli.py       the command line: run, plan, status, list
__main__.py  the same, as python -m orchestrator
config.py    an experiment file, validated with every problem at once
plan.py      an experiment as tasks, deduplicated by key
state.py     the scheduler: events in, instructions out
run.py       the loop that obeys the scheduler and records what it is told
progress.py  what the person sees meanwhile
report.py    results as tables in the terminal
"""
