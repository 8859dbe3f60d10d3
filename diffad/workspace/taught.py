"""Categories that people taught: each in a folder with its statistics and its good pictures.

A folder holds `category.safetensors`, which alone says what belongs to the category; the sums by which one
more picture can be learned (`sums-<n>.safetensors`); the good pictures by their hash; and the category as it
was before its last change. Whatever is not named in the first file does not count, so that a program may be
killed at any moment.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffad.checkpoint import Category, CheckpointError, load_category, read_about, save_category
from diffad.inspector import Inspector
from diffad.method.profile import Profile
from diffad.output import explained, whole, write
from diffad.teaching.quick import check_name
from diffad.teaching.statistics import Fitted
from diffad.workspace import events
from diffad.workspace.store import Workspace, WorkspaceError
from diffad.workspace.sums import load_sums, save_sums
from diffad.workspace.taught_files import check_about, unpack

_FILE, _BEFORE = "category.safetensors", "before.safetensors"


@dataclass(frozen=True)
class TaughtCategory:
    """A category in the workspace.

    Attributes:
        name, network: see `checkpoint.Category`.
        folder: its own.
        about: pictures (name by hash), version, time (UTC, s since 1970), who, model, sums.
    """

    name: str
    network: str
    folder: Path
    about: Mapping[str, Any]

    @property
    def pictures(self) -> dict[str, Path]:
        """The good pictures that it was learned from, by the names that people know."""
        named: dict[str, Path] = {}
        for sha256, name in self.about.get("pictures", {}).items():
            plain = self.folder / "good" / f"{sha256}{Path(name).suffix.lower()}"
            path = next((self.folder / "good").glob(f"{sha256}*"), plain)
            named[name if name not in named else f"{sha256[:8]} {name}"] = path
        return named

    @property
    def can_undo(self) -> bool:
        return (self.folder / _BEFORE).is_file()


class Taught:
    """The categories of a workspace. All methods raise WorkspaceError, those that write also OutputError."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._root = workspace.folder / "categories"

    # Reading

    def all(self) -> list[TaughtCategory]:
        """By name. Files that cannot be read are left out (`damaged` names them)."""
        latest = {each.name: each for each in sorted(self._every(), key=_version)}
        return sorted(latest.values(), key=lambda each: each.name.casefold())

    def damaged(self) -> list[str]:
        """Why some categories cannot be read."""
        wrong = []
        for folder in self._folders():
            try:
                read_about(folder / _FILE)
            except CheckpointError as error:
                wrong.append(str(error))
        return wrong

    def find(self, name: str) -> TaughtCategory:
        """Raises WorkspaceError if nobody taught it."""
        for each in self.all():
            if each.name == name:
                return each
        raise WorkspaceError(f"there is no taught category {name!r}: choose one from the list")

    def load(self, name: str) -> Category:
        try:
            return load_category(self.find(name).folder / _FILE)
        except CheckpointError as error:
            raise WorkspaceError(str(error)) from None

    def attached(self, inspector: Inspector, own: Mapping[str, Profile]) -> Inspector:
        """The model with the categories that were taught to its network.

        Args:
            own: the model's own profiles, which keep their names.
        """
        profiles = dict(own)
        for each in self.all():
            if each.network == inspector.network_id and each.name not in own:
                with suppress(CheckpointError):
                    profiles[each.name] = load_category(each.folder / _FILE).profile
        return inspector.with_profiles(profiles)

    def _every(self) -> list[TaughtCategory]:
        """With those that were replaced just before the program was killed."""
        found = []
        for folder in self._folders():
            with suppress(CheckpointError):
                name, network, about = read_about(folder / _FILE)
                found.append(TaughtCategory(name, network, folder, about))
        return found

    def _folders(self) -> list[Path]:
        folders = self._root.iterdir() if self._root.is_dir() else ()
        return [each for each in folders if (each / _FILE).is_file() and not each.name.startswith(".")]

    # Writing

    def _sweep(self) -> None:
        """Remove what was replaced or half written when the program was killed. Needs the lock."""
        kept = {each.folder for each in self.all()}
        left = [each.folder for each in self._every() if each.folder not in kept]
        hidden = self._root.glob(".*") if self._root.is_dir() else ()
        for folder in (*left, *hidden):
            shutil.rmtree(folder, ignore_errors=True)

    def add(
        self,
        inspector: Inspector,
        name: str,
        fitted: Fitted,
        pictures: Mapping[str, Path],
        who: str = "",
        **about: Any,
    ) -> TaughtCategory:
        """Keep a category that was just taught; one of the same name is replaced.

        Args:
            inspector: the model that it was taught to.
            pictures: those that it was learned from, by the names that people know.
            about: free JSON to keep with it.
        """
        folder = self._root / secrets.token_hex(8)
        new = folder.with_name(f".{folder.name}")
        with self._workspace.lock, explained(new):
            self._sweep()
            old = [each for each in self.all() if each.name == name]
            if any(each.network != inspector.network_id for each in old):
                raise WorkspaceError(f"{name} was taught to another model: choose another name")
            try:
                (new / "good").mkdir(parents=True)
                kept = {_put(path, new / "good"): shown for shown, path in pictures.items()}
                save_sums(new / "sums-1.safetensors", fitted.sums)
                version = 1 + max((_version(each) for each in old), default=0)
                says = {
                    **about, "pictures": kept, "version": version,
                    "time": time.time(), "who": who, "model": inspector.name, "sums": 1,
                }  # fmt: skip
                cell = inspector.extractor.cell
                save_category(new / _FILE, Category(name, fitted.profile, inspector.network_id, cell, says))
                new.rename(folder)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            self._sweep()
        self._note(who, "teach", name, pictures=len(kept))
        return self.find(name)

    def change(
        self, name: str, profile: Profile, who: str, action: str, fitted: Fitted | None = None,
        pictures: Sequence[tuple[str, Path]] = (), **detail: Any,
    ) -> TaughtCategory:  # fmt: skip
        """Keep a changed profile; the category as it was can be had back once (`undo`).

        Args:
            action, detail: for the list of events.
            fitted: with the sums, if they changed too.
            pictures: names and files of good pictures that were learned.
        """
        with self._workspace.lock:
            found, before = self.find(name), self.load(name)
            says = {**before.about, "version": _version(found) + 1, "time": time.time(), "who": who}
            with explained(found.folder):
                learned = {_put(path, found.folder / "good"): shown for shown, path in pictures}
                says["pictures"] = {**before.about["pictures"], **learned}
                if fitted is not None:
                    says["sums"] = before.about["sums"] + 1
                    save_sums(found.folder / f"sums-{says['sums']}.safetensors", fitted.sums)
                write(found.folder / _BEFORE, (found.folder / _FILE).read_bytes())
                save_category(found.folder / _FILE, replace(before, profile=profile, about=says))
                _tidy(found.folder, {before.about["sums"], says["sums"]})
        self._note(who, action, name, **detail)
        return self.find(name)

    def undo(self, name: str, who: str = "") -> TaughtCategory:
        """Take back the last change. Raises WorkspaceError if there is none."""
        with self._workspace.lock:
            found = self.find(name)
            if not found.can_undo:
                raise WorkspaceError(f"there is nothing to undo in {name}")
            try:
                before = load_category(found.folder / _BEFORE)
            except CheckpointError as error:
                raise WorkspaceError(str(error)) from None
            with explained(found.folder):
                if before.name != name:  # it was renamed since
                    save_category(found.folder / _BEFORE, replace(before, name=name))
                (found.folder / _BEFORE).replace(found.folder / _FILE)
        self._note(who, "undo change", name)
        return self.find(name)

    def ignore(self, name: str, ignored: Tensor | None, who: str = "") -> TaughtCategory:
        """Judge nothing at these places, bool [s, s] over the model's square; None judges everything."""
        if ignored is not None and not ignored.any():
            ignored = None
        if ignored is not None and ignored.all():
            raise WorkspaceError("everything would be ignored: leave something to judge")
        profile = replace(self.load(name).profile, ignored=ignored)
        return self.change(
            name, profile, who, "ignore", share=0.0 if ignored is None else float(ignored.float().mean())
        )

    def fitted(self, name: str) -> Fitted:
        """A category's profile with the sums by which one more picture can be learned."""
        found, category = self.find(name), self.load(name)
        try:
            return Fitted(
                category.profile, load_sums(found.folder / f"sums-{category.about['sums']}.safetensors")
            )
        except (CheckpointError, KeyError) as error:
            raise WorkspaceError(f"{name} cannot learn single pictures ({error}): teach it again") from None

    def rename(self, name: str, new: str, taken: Sequence[str] = (), who: str = "") -> TaughtCategory:
        """Raises DataError for a name that cannot be taken. taken: names of the models' own categories."""
        with self._workspace.lock:
            self._sweep()
            found, category = self.find(name), self.load(name)
            others = [each.name for each in self.all() if each.name != name]
            new = check_name(new, [*taken, *others])
            save_category(found.folder / _FILE, replace(category, name=new))
        self._note(who, "rename", new, before=name)
        return self.find(new)

    def remove(self, name: str, who: str = "") -> None:
        """Its statistics and its good pictures; the history keeps what was inspected."""
        with self._workspace.lock:
            self._sweep()
            folder = self.find(name).folder
            gone = folder.with_name(f".{folder.name}")
            with explained(folder):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        self._note(who, "remove", name)

    # Files to hand on

    def export(self, name: str, file: str | Path) -> Path:
        """Write a category with its good pictures into one zip, which `import_from` takes."""
        found = self.find(name)
        with whole(file) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            archive.write(found.folder / _FILE, _FILE)
            with suppress(FileNotFoundError):
                sums = f"sums-{found.about.get('sums')}.safetensors"
                archive.write(found.folder / sums, sums)
            for path in found.pictures.values():
                archive.write(path, f"good/{path.name}")
        return Path(file)

    def import_from(self, file: str | Path, taken: Sequence[str] = (), who: str = "") -> TaughtCategory:
        """Read what `export` wrote. Raises DataError for a name that is taken already."""
        folder = self._root / secrets.token_hex(8)
        new = folder.with_name(f".{folder.name}")
        with self._workspace.lock, explained(new):
            self._sweep()
            try:
                unpack(Path(file), new)
                category = load_category(new / _FILE)
                check_about(category.about, new)
                check_name(category.name, [*taken, *(each.name for each in self.all())])
                new.rename(folder)
            except CheckpointError as error:
                reason = str(error).replace(str(new / _FILE), "its statistics")
                raise WorkspaceError(f"{file} is no exported category: {reason}") from None
            finally:
                shutil.rmtree(new, ignore_errors=True)
        self._note(who, "import", category.name)
        return self.find(category.name)

    def _note(self, who: str, action: str, name: str, **detail: Any) -> None:
        with self._workspace.writing() as db:
            events.add(db, who, action, name, detail)


def _version(category: TaughtCategory) -> int:
    version = category.about.get("version", 0)
    return version if isinstance(version, int) else 0


def _put(path: Path, folder: Path) -> str:
    """Copy a picture under its hash; returns that."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    file = folder / f"{sha256}{path.suffix.lower()}"
    if not file.exists():
        write(file, data)
    return sha256


def _tidy(folder: Path, kept: set[int]) -> None:
    names = {f"sums-{number}.safetensors" for number in kept}
    for file in folder.glob("sums-*.safetensors"):
        if file.name not in names:
            file.unlink(missing_ok=True)
