"""What to run, and what a person sees of it.

cli.py       the command line: run, plan, and the commands of the next two
cli_ask.py   commands that ask the store: status, timeline
cli_data.py  commands that say what there is: list
__main__.py  the same, as python -m orchestrator
source.py    an experiment file as text: lines, keys given twice, settings changed from outside
config.py    what an experiment file may say
check.py     load an experiment file, checked against what there is, all problems at once
plan.py      an experiment as tasks, deduplicated by key
resume.py    a plan beside what the store has of it
state.py     the scheduler: events in, instructions out
run.py       the loop that obeys the scheduler and records what it is told
history.py   what a run sends to MLflow, and what waits to be sent
progress.py  what the person sees meanwhile
report.py    results as tables in the terminal
listing.py   every attack, defense, dataset, architecture and experiment by name
timeline.py  when each task ran, as a Chrome trace
"""
