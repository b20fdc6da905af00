"""`python -m dashboards.app`: studies in a browser, as their trials end."""

import argparse
import logging
import os
import secrets
import sys

from objectives.errors import UserError
from study import cli
from study.spec import StudySpec

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "dashboards.app",
        "[--output-dir FOLDER | --storage URL] [--port N] [options]",
        "Show studies in a browser, as their trials end. Nothing is written.",
    )
    cli.add_storage_flags(parser)
    cli.add_tracking_flag(parser)
    parser.add_argument("--port", metavar="N", type=int, default=8050, help="(default: 8050)")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where to listen (default: 127.0.0.1); beyond this machine a token is demanded, "
        "that of PARETOCUT_TOKEN, or a new one, which is printed",
    )
    return cli.main(parser, _serve, argv)


def _serve(arguments: argparse.Namespace) -> int:
    from werkzeug.serving import make_server

    from dashboards.live.server import build_app
    from dashboards.live.studies import Studies

    token, query = None, ""
    if arguments.host not in _LOOPBACK:
        given = os.environ.get("PARETOCUT_TOKEN")
        token = given or secrets.token_urlsafe(24)
        # Who gave it knows it; logs need not.
        query = "?token=$PARETOCUT_TOKEN" if given else f"?token={token}"
    tracking_store = StudySpec(
        output_dir=arguments.output_dir,
        tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
    ).tracking_store
    studies = Studies(
        arguments.storage, arguments.output_dir, tracking_store, is_public=token is not None
    )
    app = build_app(studies, token)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        server = make_server(arguments.host, arguments.port, app.server, threaded=True)
    except (OSError, SystemExit, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "it is in use, or none of this machine"
        raise UserError(
            f"--port {arguments.port}: {arguments.host} cannot be listened to ({reason}); choose "
            "another --port or --host"
        ) from None
    studies.read_ahead()
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"http://{host}:{server.server_port}/{query}", flush=True)
    server.serve_forever()
    return cli.OK


if __name__ == "__main__":
    sys.exit(main())
