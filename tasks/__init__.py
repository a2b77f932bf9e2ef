"""Units of work: what is computed, and where its numbers come from.

base.py             a task, its key, the streams of randomness
plugins.py          find attacks and defenses by file name
architectures.py    the classifiers, and how each is trained
training.py         train a model, ask a model
stacked.py          train many models of one architecture together
noise.py            random numbers keyed by noise policy and input
service.py          a deployed classifier with its defenses, as it answers and is asked
worker.py           what a worker does with a task
shelf.py            what workers that do not see the store ask the driver's machine for
logs.py             the log of a task: where it ran, what it printed, how it went wrong
versions.py         what a process computes with: Python, packages, commit
split.py            task: the leak-free partition of a dataset
check_split.py      task: does the split give membership away before any model has answered?
train_target.py     task: a trained classifier
reference.py        what a defense is given for reference records, where that is not all of D2
setting.py          what a defense may use while it is made
block.py            tasks: several models trained together, each a classifier of its own
train_shadows.py    tasks: shadow models in the half-split design
train_block.py      tasks: models on row sets of their own, trained several at once
fit_defense.py      task: a fitted output defense
answers.py          task: what the service answers for every record
knowledge.py        what an attacker has, as its threat model grants it
run_attack.py       task: scores and result row of one attack
effort.py           task: whether a weak attack is to be trained harder
data_attack.py      task: what attacks on records and attributes have in common
run_inversion.py    task: how near rebuilt records come to the true ones
inversion_metrics.py   what their errors amount to, and what guessing gets
identity.py         the last hidden layer of a classifier; a network that knows people
images.py           how alike a record and its reconstruction are
image_grid.py       several rows of images as one image
run_attribute.py    task: what answers tell of a sensitive attribute
attribute_metrics.py   how many of the inferred values are right
one_run.py          a lower bound on epsilon from the guesses of one run
measure_utility.py  task: what a defense costs
worst_case.py       task: what the strongest of all attacks on a service gets
detection.py        small classifiers that tell two kinds of records apart
metrics.py          attack and utility metrics, intervals
nullband.py         the max-null band: is the largest of several attacks chance?
"""
