"""Base class of the settings of tasks and strategies, which are saved with the name of their class."""

from typing import Any

from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import Settings


class NamedSettings(Settings):
    """Settings whose class is selected by a name in the configuration."""

    def document(self) -> dict[str, Any]:
        """Return the name and the settings as JSON, from which the object can be created again."""
        return {"name": registry.name_of(type(self)), **self.model_dump(mode="json")}
