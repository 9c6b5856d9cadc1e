"""The base class of every method: a configuration, what was learned, and the interventions they make."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch

from . import __version__
from ._card import card
from ._config import config_fields, decode_config, encode_config
from .errors import LONGEST, FileFormatError, FingerprintError, SteerError, UnknownNameError, unknown_name
from .examples import Example
from .files import FILE_NAMES, JSON_NAME, TENSORS_NAME, SavedMethod, read_folder, write_folder

if TYPE_CHECKING:
    from .intervention import Intervention
    from .model_map import ModelMap
    from .prompts import Prompt


@dataclass
class Method(ABC):
    """One way to adapt a model. Subclass it as a dataclass whose fields are plain, JSON-able configuration.

    Attributes:
        name: the name it is registered under, e.g. `"icv"`.
        paper: link to the paper.
        summary: one line for `steer methods`.
        reads: what it is fitted and measured on: "examples", questions with answers, or "labelled", pictures with the
            names of their classes, as `steer.data.read_labelled` gives them. A method of the latter kind also has
            `classes`, `set_classes(names)`, `bind(model, processor)` and `predict(pictures, batch_size=...)`, whose
            result has `classes` and `probabilities`, fp32 (B, K); and `learns`, False where there is nothing to fit.
        fit_options: the dataclass whose fields `fit` takes as further keywords; None for none, or any.
        demo: the configuration in which `steer demo` shows the method by default; None where it does not.
        tensors: what was learned or extracted, fp32, by name; empty before fitting.
        provenance: fingerprint of the model it was fitted on, seed, data and version of steer; empty before fitting.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    reads: ClassVar[Literal["examples", "labelled"]] = "examples"
    fit_options: ClassVar[type | None] = None
    demo: ClassVar[Mapping[str, Any] | None] = None

    tensors: dict[str, torch.Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)
    provenance: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @abstractmethod
    def interventions(self, model_map: ModelMap) -> list[Intervention]:
        """What to do where, for the model that was mapped.

        Raises:
            SteerError: the method must be fitted first, or does not fit the model.
        """

    def fit(
        self, model: torch.nn.Module, processor: Any, examples: Sequence[Example], *, seed: int = 0, **options: Any
    ) -> Self:
        """Learn or extract `tensors` from examples; changes no weight of the model.

        Raises:
            SteerError: this method learns nothing.
        """
        raise SteerError(f"method {self.name!r} needs no fitting; attach it as it is: steer.attach(model, method)")

    def prompts(self, queries: Sequence[Example], model: Any = None, processor: Any = None) -> list[Prompt]:
        """What the model is shown for each query: the query alone, unless the method works through the prompt.

        Args:
            queries: what is asked.
            model: for methods that choose by the model's own states.
            processor: the model's processor or tokenizer, for the same.
        """
        from .prompts import Prompt

        return [Prompt(query) for query in queries]

    def answer(
        self,
        model: torch.nn.Module,
        processor: Any,
        queries: Sequence[Example],
        *,
        template: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 8,
    ) -> list[str]:
        """What the model writes for each query with this method attached, greedily.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            queries: what is asked; their answers are not looked at.
            template: how an example is written, as in `steer.prompts.encode`; None for the method's own `template`, if
                it has one.
            batch_size: prompts in one forward.
            max_new_tokens: written at most.

        Returns:
            One answer for each query, without special tokens and outer spaces.

        Raises:
            SteerError: the method must be fitted first, or the model does not write text.
        """
        from .prompts import write
        from .session import attach

        if not queries:
            return []
        shown = self.prompts(queries, model, processor)
        with attach(model, self, measure="none"):
            return write(
                model,
                processor,
                shown,
                template=self._own_template(template),
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
            )

    def _own_template(self, template: str | None) -> str | None:
        """`template`, or where that is None the method's own field of this name, if it has one."""
        return template if template is not None else getattr(self, "template", None)

    def record_provenance(
        self, model_map: ModelMap, seed: int, data: str | Mapping[str, Any] | Iterable[Example]
    ) -> None:
        """Note what `tensors` were made from. Call it at the end of `fit`.

        Args:
            model_map: of the model fitted on; its fingerprint is kept.
            seed: the seed used.
            data: the examples themselves (their number and a digest of their words are kept, not the words), or a
                description as a string or plain data.
        """
        described = data if isinstance(data, str | Mapping) else _describe(data)
        self.provenance = {
            "model_class": model_map.model_class,
            "fingerprint": model_map.fingerprint(),
            "seed": seed,
            "data": described if isinstance(described, str) else dict(described),
            "steer_version": __version__,
        }

    def check_fits(self, model_map: ModelMap) -> None:
        """Check that `tensors` were made for a model of this shape. A method without provenance fits any.

        Raises:
            FingerprintError: it was made for another model; the message lists the differences.
        """
        made_for = self.provenance.get("fingerprint")
        if made_for is not None:
            check_fingerprint(f"method {self.name!r}", made_for, model_map, "fit it again on this model")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the method to a folder: JSON, safetensors and a model card.

        Raises:
            InterventionError: a field or tensor that cannot be saved; the message names it.
        """
        from .registry import source_of

        source = source_of(type(self))
        plugin = {"distribution": source.distribution, "version": source.version} if source else {}
        saved = SavedMethod(self.name, encode_config(self), self.tensors, self.provenance, plugin)
        write_folder(folder, saved, card(self, saved))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load a method from a folder or a hub id. Called on `Method` itself it loads any installed method.

        Raises:
            FileFormatError: the files are missing, damaged, or hold another method than this class.
            UnknownNameError: no installed plugin has the method; or there is no such folder or hub id.
        """
        saved = read_folder(local_folder(path, revision))
        if cls is Method:
            from .registry import method_class

            found = method_class(saved.method, saved.plugin.get("distribution"))
            return found._from_saved(saved)  # type: ignore[return-value]
        if saved.method != cls.name:
            raise FileFormatError(
                f"{path} holds method {saved.method!r:.100}, not {cls.name!r}; use steer.load to load any method"
            )
        return cls._from_saved(saved)

    @classmethod
    def _from_saved(cls, saved: SavedMethod) -> Self:
        known = config_fields(cls)
        for key in saved.config:
            if key not in known:
                raise unknown_name(
                    f"configuration field of method {saved.method!r}", key, known, "it may be from a newer version"
                )
        arguments = decode_config(cls, saved.config)
        try:
            method = cls(**arguments)
        except SteerError:
            raise
        # The fields' types are right, so whatever the class objects to is a value that it would not have saved.
        except Exception as error:
            raise FileFormatError(
                f"the saved configuration of method {saved.method!r} is not valid: {error}"
            ) from error
        method.tensors = dict(saved.tensors)
        method.provenance = dict(saved.provenance)
        return method

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Save the method and upload it as a model repository of the Hugging Face hub.

        Args:
            repo_id: `"user/name"`; made if there is none.
            private: for a repository that is made now.
            commit_message: of the upload.
            revision: branch to commit to.
            token: as in huggingface_hub; None takes the one that is logged in.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=created.repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload steer method {self.name}",
                revision=revision,
            )
        return str(commit.commit_url)


def check_fingerprint(what: str, made_for: Any, model_map: ModelMap, how: str = "make it again on this model") -> None:
    """Check that something was made for a model of this shape.

    Raises:
        FingerprintError: it was made for another model; the message lists the differences.
    """
    differences = _differences(made_for, model_map.fingerprint())
    if differences:
        raise FingerprintError(f"{what} does not fit {model_map.model_class}: {'; '.join(differences)}; {how}")


def local_folder(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder itself, or the download of a hub id's three files.

    Raises:
        UnknownNameError: neither a folder nor something the hub gave.
    """
    # os.path, because Path.is_dir raises where the name is too long to be one.
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hint = f"give a folder that holds {JSON_NAME} and {TENSORS_NAME}, or a hub id such as 'user/name'"
    # One slash is what makes a hub id; anything else was meant as a folder.
    if isinstance(path, os.PathLike) or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        problem = f"{path} is a file" if os.path.isfile(path) else f"there is no folder {str(path)[:LONGEST]!r}"
        raise UnknownNameError(f"{problem}; {hint}")
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=list(FILE_NAMES)))
    except (OSError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownNameError(f"there is no folder or hub id {str(path)[:LONGEST]!r}; {hint} ({reason})") from error


def _describe(examples: Iterable[Example]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    for example in examples:
        digest.update(repr((example.question, example.answer, len(example.images))).encode())
        count += 1
    return {"examples": count, "sha256": digest.hexdigest()}


def _differences(made_for: Any, found: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words; the first differing layer of a tower stands for the rest."""
    if not isinstance(made_for, Mapping) or not isinstance(made_for.get("towers"), Mapping):
        return ["its recorded fingerprint cannot be read"]
    if made_for == found:
        return []
    differences = []
    if made_for.get("model_type") != found["model_type"]:
        differences.append(
            f"made for model type {made_for.get('model_type')!r:.60}, this one is {found['model_type']!r}"
        )
    for name in sorted({*made_for["towers"], *found["towers"]}):
        theirs, ours = made_for["towers"].get(name), found["towers"].get(name)
        if theirs == ours:
            continue
        if theirs is None or ours is None:
            differences.append(f"tower {name!r:.60} is {'new here' if theirs is None else 'missing here'}")
        else:
            differences.extend(_tower_differences(name, theirs, ours))
    return differences or ["its recorded fingerprint is of another format"]


def _tower_differences(name: str, theirs: Any, ours: Mapping[str, Any]) -> list[str]:
    if not isinstance(theirs, Mapping) or not isinstance(theirs.get("layers"), list):
        return [f"the recorded tower {name!r:.60} cannot be read"]
    differences = []
    if theirs.get("width") != ours["width"]:
        differences.append(f"tower {name!r} had width {theirs.get('width')!r:.20}, here {ours['width']}")
    if len(theirs["layers"]) != len(ours["layers"]):
        differences.append(f"tower {name!r} had {len(theirs['layers'])} layers, here {len(ours['layers'])}")
    for index, (before, here) in enumerate(zip(theirs["layers"], ours["layers"], strict=False)):
        if before != here:
            differences.append(
                f"layer {index} of tower {name!r} had [self, cross] attention {_shape_words(before)}, "
                f"here {_shape_words(here)} (kind, heads, key-value heads, head width, value width)"
            )
            break
    return differences


def _shape_words(layer: Any) -> str:
    return f"{layer!r:.120}"
