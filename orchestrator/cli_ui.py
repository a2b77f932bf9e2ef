"""The command that shows a store in the browser: ui."""

from typing import Annotated

import typer

from orchestrator._console import (
    DEFAULT_STORE,
    Debug,
    Errors,
    StoreOption,
    StudyUri,
    TrackingOption,
    find_made_store,
    find_tracking,
    refuse,
)

__all__ = ["ui"]


def ui(
    store: StoreOption = DEFAULT_STORE,
    tracking_uri: TrackingOption = None,
    study_uri: StudyUri = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Of MLflow's page.")
    ] = 5000,
    dashboard_port: Annotated[
        int,
        typer.Option(
            "--dashboard-port", metavar="N", min=0, max=65535, help="Of Optuna's dashboard."
        ),
    ] = 8080,
    debug: Debug = False,
) -> None:
    """Show the run history (MLflow) and the studies (Optuna) as pages, until Ctrl-C.

    The pages are reachable from this machine only, at the addresses that are printed; from another
    one, go through ssh: `ssh -L 5000:127.0.0.1:5000 HOST`. Where a usual port is taken a free one
    is used; 0 stands for any that is free.

    [bold]Examples[/bold]

      sfumato ui

      sfumato ui --store /big/disk/store --port 5001 --dashboard-port 8081

      sfumato ui --study-uri postgresql://ann:PASSWORD@db.example.org/studies
    """
    with Errors(debug):
        root, uri = find_made_store(store), find_tracking(tracking_uri)
        from orchestrator.study_storage import StudyAway
        from orchestrator.ui import serve
        from storage.tracking import TrackingAway

        try:
            serve(root, uri, study_uri, port=port, dashboard_port=dashboard_port)
        except (StudyAway, TrackingAway) as error:
            refuse(str(error))
