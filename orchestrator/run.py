"""A run of an experiment: what is missing is done, what is done is recorded."""

from orchestrator.config import Experiment
from orchestrator.forms import describe, earlier, form_of, held
from orchestrator.history import History
from orchestrator.loop import STALE_S, Loop
from orchestrator.outcome import Options, Outcome, Progress
from orchestrator.plan import make_plan
from orchestrator.resume import Store, cell_rows, compare
from storage.artifacts import StoreUnwritable
from storage.working import Pusher, push
from tasks.worker import check_journal

__all__ = ["run"]


def run(experiment: Experiment, options: Options, progress: Progress) -> Outcome:
    """Run what is missing; everything that finishes is kept, whatever happens to the rest.

    Raises:
        ClusterUnreachable: if no worker can be had.
        StoreUnwritable: if the store cannot be written to.
        ValueError: if the journal cannot be.
        KeyboardInterrupt: as typed; the same call resumes.
    """
    check_journal(options.journal)
    store, name = Store(options.store), experiment.name
    plan = make_plan(experiment, options.data_dir)
    unwritable: StoreUnwritable | None = None
    try:
        describe(plan, store)  # first: what is needed here `gc` leaves alone from now on
        push(store.root)
    except StoreUnwritable as error:
        unwritable = error
    prepared = compare(plan, store, repair=True)
    num_told = len(store.tables.problems)
    outcome = Outcome(plan, form_of(plan), cached=len(prepared.done))
    try:
        if unwritable is not None:
            raise unwritable
        store.drop_stale_drafts(older_than_s=STALE_S)
        # Cells are written before and after: a killed driver leaves results that can be queried.
        store.tables.write_cells(name, cell_rows(plan, store, {}, {}), outcome.form)
        before = store.tables.forms.current(name)
        store.tables.forms.set_current(name, outcome.form)
    except StoreUnwritable as error:
        if prepared.needed or (form := held(plan, store)) is None:
            raise
        outcome.form = form
        outcome.warnings.append(str(error))  # all results are there to be read
        return outcome
    for note in (*prepared.notes, earlier(plan, store, before)):
        if note:
            progress.note(note)
    history = History(plan, store, options.tracking_uri)
    pusher = Pusher(store.root)
    try:
        if prepared.needed:
            progress.begin(prepared)
            expected_s = prepared.expected_s
            loop = Loop(options, store, progress, history.put, outcome, expected_s=expected_s)
            loop.add(prepared)
            loop.work()
    finally:
        progress.end()
        try:
            rows = cell_rows(plan, store, outcome.failed, outcome.blocked)
            outcome.missing = sum(row["status"] == "waiting" for row in rows)
            store.tables.write_cells(name, rows, outcome.form)
        except StoreUnwritable as error:
            outcome.stopped = outcome.stopped or str(error)
        outcome.warnings += pusher.close()
        outcome.warnings += history.close()
        outcome.warnings += store.tables.problems[num_told:]
    return outcome
