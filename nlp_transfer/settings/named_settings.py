"""Base class of the settings of tasks and strategies, which are saved with the name of their class."""

from typing import Any

from nlp_transfer.settings import registry
from nlp_transfer.settings.base_settings import Settings


class NamedSettings(Settings):
    """Settings whose class is selected by a name in the configuration."""

    def document(self) -> Any:
        """Return the name and the settings as JSON, which `task_from` and `strategy_from` read."""
        settings = self.model_dump(mode="json", fallback=lambda value: f"<{type(value).__name__} of {len(value)} rows in memory>")
        return {"name": registry.name_of(type(self)), **settings}
