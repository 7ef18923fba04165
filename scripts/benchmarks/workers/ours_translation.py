"""Worker of `generation` for this project: a list of texts through `load_translator`."""

from protocol import Channel
from workers.plain import serve_translations

from nlp_transfer import load_translator

channel = Channel()
settings = channel.settings
# Those of the run, under which its columns may have other names.
serve_translations(
    channel,
    load_translator(
        settings["run"], settings={"beams": settings["beams"], **settings.get("task", {})}, **settings.get("options", {})
    ),
)
