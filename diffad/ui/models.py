"""The models that the page offers, with the categories that were taught to them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from diffad.checkpoint import CheckpointError
from diffad.inspector import Inspector
from diffad.workspace.store import Workspace
from diffad.workspace.taught import Taught


class Models(dict[str, Inspector]):
    """Inspectors by name. What is read of it is always one whole inspector, whoever teaches meanwhile."""

    def __init__(self, inspectors: Mapping[str, Inspector], workspace: Workspace | None) -> None:
        super().__init__(inspectors)
        self._workspace = workspace
        self._own = {name: dict(inspector.profiles) for name, inspector in inspectors.items()}
        self._changing = threading.Lock()
        self.taught = None if workspace is None else Taught(workspace)
        self.refresh()

    def own(self, name: str) -> list[str]:
        """The categories that a model knew from the start."""
        return list(self._own[name])

    def refresh(self) -> None:
        """Take up what was taught, renamed, removed or trained since the last time."""
        if self._workspace is None or self.taught is None:
            return
        with self._changing:
            for path in sorted((self._workspace.folder / "models").glob("*.safetensors")):
                self._load(path)
            for name, own in self._own.items():
                self[name] = self.taught.attached(self[name], own)

    def _load(self, path: Path) -> None:
        if path.stem not in self._own:
            device = next(iter(self.values())).device
            try:
                inspector = Inspector.load(path, str(device))
            except CheckpointError:  # a damaged file must not keep the others away
                return
            self._own[path.stem] = dict(inspector.profiles)
            self[path.stem] = inspector
