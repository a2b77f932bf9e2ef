"""What to run, and what a person sees of it.

cli.py       the command line: run, plan, and the commands of the next two
cli_ask.py   commands that ask the store: status, timeline, query, show
cli_care.py  commands that look after store and machine: gc, doctor
cli_cluster.py   commands about clusters elsewhere: cluster template
cli_jobs.py  commands about jobs on a cluster elsewhere: submit, jobs, logs, stop
cli_data.py  commands that say what there is: list, data list, data check
cli_tune.py  the command that searches: tune
cli_ui.py    the command that shows a store in the browser: ui
__main__.py  the same, as python -m orchestrator
source.py    an experiment file as text: lines, keys given twice, settings changed from outside
config.py    what an experiment file may say
entries.py   its entries: datasets, target, defenses, attacks
tune_entry.py   its block tune: what is searched, by whom it is judged, how long
check.py     load an experiment file, checked against what there is, all problems at once
references.py   the `reference:` of a defense: what it means, and whether it can be had
plan.py      an experiment as tasks, deduplicated by key
defended.py  a classifier behind its defenses as tasks: target, shadow, own copy
attacker.py  what an attacker plans with: models, shadows and copies of its own
data_attacks.py   attacks on records and attributes: what is asked of their keys, their tasks
forms.py     the forms an experiment was run in, kept until they are forgotten
resume.py    a plan beside what the store has of it
costs.py     what tasks take, as the store has measured it: seconds and memory
state.py     the scheduler: events in, instructions out
rooms.py     who shares memory with whom, and what fits in beside what runs there
outcome.py   how a run is to go, what is told meanwhile, and what it came to
loop.py      the loop that obeys the scheduler and records what it is told
run.py       a run of an experiment
space.py     the searched fields: kinds, conditions, defenses made of values
study.py     ask and tell on a study of Optuna's whose trials outlive their drivers
study_storage.py   where studies are kept: a file in the store, or a database
trial.py     a trial as a small plan: where it may stop, and what it came to
tune.py      a search: trials on the workers until there are enough
front.py     points of a search against each other: who dominates, volume, which to take
judge.py     points of a front before attackers that no trial saw
explain.py   which searched fields mattered, and which way
compare.py   studies from file to result, one or several beside each other
history.py   what a run sends to MLflow, what waits to be sent, and all of it anew
past.py      the run history as a table, CSV or JSON
count.py     a run in numbers: what is done, who does it where, when it will end
live.py      these numbers kept in the store, for who looks from elsewhere
watch.py     who works on an experiment now, once or until they have ended
task_log.py  the log of one task, with how it ended, printed and followed
progress.py  what the person sees meanwhile
flags.py     what the flags of results mean, and their marks
report.py    results as tables in the terminal
report_data.py   what attacks on records and attributes got, as tables
report_tune.py   what a search came to, as tables, and what its figures show
figures.py   rebuilt records as images, a row for each defense
figures_tune.py   figures of a search: fronts, history, importances, parameters
ui.py        MLflow's page and Optuna's dashboard, on loopback
overview.py  what would run, and how far it is, as tables in the terminal
answer.py    the answer to a query as a table in the terminal
listing.py   every attack, defense, dataset, architecture and experiment by name
data_check.py   whether a column, the class or a duplicate gives label or membership away
data_report.py  the datasets that are here, and one looked at closely, in the terminal
show.py      the chain of tasks, settings and versions behind a number
lineage.py   that chain, printed
garbage.py   what no experiment of a store needs, and its removal
doctor.py    what works here and what does not
timeline.py  when each task ran, as a Chrome trace
"""
