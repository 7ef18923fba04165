"""Serve a saved model over HTTP. Needs the extra `serve`."""

from importlib import import_module

from nlp_transfer.utils.errors import UserError

for _package in ("fastapi", "uvicorn", "prometheus_client"):
    try:
        import_module(_package)
    except ImportError:
        raise UserError(
            f'serve: needs the package {_package}, which is not installed; to install it: pip install "nlp_transfer[serve]"'
        ) from None
