"""Options of a command that runs elsewhere: what can be said of them here."""

from pathlib import Path

from orchestrator._console import find_store, refuse, uri_of
from storage.tracking import masked

__all__ = ["check_secret", "store_there"]

_HOME_STORE = "sfumato-store"  # in the home folder of who runs the cluster


def store_there(given: str | None) -> str:
    """A store as the cluster sees it.

    Raises:
        ValueError: if `run` would refuse it, or it is relative: the job's folder is removed.
    """
    if given is None:
        return f"~/{_HOME_STORE}"
    if uri_of(Path(given)) is not None:
        from storage.remote import check_uri

        try:
            return check_uri(given)  # only the cluster need reach it
        except ValueError as error:
            refuse(f"--store {error}")
    find_store(Path(given))  # which kinds of store there are is its to say
    if not given.startswith(("/", "~/")):
        refuse(f"--store {given}: say the whole path of a folder that every node sees, or an URI")
    return given


def check_secret(option: str, uri: str | None) -> None:
    """Whoever may list jobs sees the command of each, and its environment."""
    scheme, _, rest = (uri or "").partition("://")
    user, at, place = rest.rpartition("@")
    bare = f"{scheme}://{place}"
    secret = at and (":" in user or scheme.startswith("http"))  # a user alone may be a token there
    mistyped = uri is not None and "://" not in uri and masked(uri) != uri
    if uri is not None and (secret or mistyped or masked(bare) != bare):
        refuse(
            f"{option} {masked(uri)!r:.300} holds a secret, which everyone who may list the "
            "cluster's jobs would see. Write it without, and set on the cluster's nodes "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for an MLflow server, PGUSER "
            "and PGPASSWORD for PostgreSQL"
        )
