"""Beginning a run and going on with one: from files and options to a `Run` that is ready to train.

Nothing is written before all input has been checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from charrnn import atomic, checkpoint, facts, runlog
from charrnn.api import LanguageModel, are_files, described, load
from charrnn.config import Config, DataConfig, flag
from charrnn.data import MOST_VAL, VAL_FRAC, Corpus, part_sizes, read_corpus, split
from charrnn.errors import Diverged, Ended, InputError
from charrnn.model import Model, check_room
from charrnn.reading import STDIN, Progress
from charrnn.saving import LAST, versions
from charrnn.trainer import PACE, Event, Run, Text
from charrnn.truncation import plan
from charrnn.vocab import Vocabulary, describe

ARCHITECTURE = ("model", "hidden_size", "num_layers", "embedding_size", "activation", "residual")
"""Options that ``--init-from`` takes from the checkpoint."""

RUN_FACTS = {
    "config": dict,
    "vocabulary": dict,
    "corpus": facts.CORPUS,
    "init_from": str | None,
}
"""What config.json says that is read again."""
NUL_SHARE = 0.1
"""From which share of NUL characters on a text is doubted; UTF-16 read as UTF-8 has up to half."""


def start(
    files: Sequence[str],
    config: Config,
    out_dir: str | None = None,
    init_from: str | None = None,
    on_unknown: str = "add",
    given: Collection[str] = (),
    on_progress: Progress | None = None,
) -> Run:
    """Begin a run.

    Parameters
    ----------
    files : text files, folders, .gz files, or "-"
    config : its options
    out_dir : the run's folder; None is ``runs/<corpus>``
    init_from : a run or checkpoint whose weights and vocabulary to begin with
    on_unknown : what becomes of characters that this vocabulary lacks: "add", "map" or "error"
    given : names of the options that were asked for, as opposed to defaults
    on_progress : is told how far the reading of the text is
    """
    _check_place(out_dir, files)
    parent = load(init_from) if init_from is not None else None
    if parent is not None:
        config = _inherit(config, parent.config, given)
    corpus = _read(files, config, on_progress)
    val = _val_text(config, on_progress)
    config = _resolved(config)
    vocabulary = _vocabulary(corpus, val, config, parent, on_unknown)
    text = _prepare(corpus, val, config, vocabulary)
    run = Run(Path(), config, text)
    run.begin()
    if parent is not None:
        run.inherits = True
        _inherit_weights(run.model, parent.model)
        missing = parent.vocabulary.missing(corpus.counts)
        if missing:
            fate = "added" if on_unknown == "add" else "mapped to the unknown symbol"
            text.notes.append(
                f"characters that {parent.path} does not know are {fate}: {describe(missing)}"
            )
    said = {
        "config": config.to_json(),
        "vocabulary": vocabulary.to_json(),
        "init_from": str(parent.path.resolve()) if parent is not None else None,
        "corpus": text.facts,
        "versions": versions(),
    }
    run.folder = runlog.new_run_folder(out_dir, corpus.name)
    with contextlib.ExitStack() as lock:  # somebody else may begin one in the same folder
        lock.enter_context(runlog.lock(run.folder))
        _check_free(run.folder, files)
        if STDIN in corpus.sources:  # it cannot be read again
            with atomic.replacing(run.folder / runlog.KEPT_TEXT) as file:
                file.writelines(corpus.kept())
        if parent is not None:  # which may be trained on, or removed
            checkpoint.save(run.folder / checkpoint.START, *run.state(0))
        runlog.write_json(run.folder / "config.json", said)
        run.lock = lock.pop_all()
    return run


def _check_place(out_dir: str | None, files: Sequence[str]) -> None:
    """Refuse at once, and not after a long text was read, what can be told of ``--out-dir``."""
    folder = Path(out_dir or runlog.ROOT)
    paths = (folder, *folder.absolute().parents)
    place = next(path for path in paths if os.path.exists(path))  # of names too long, too
    try:
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        atomic.try_folder(place)
    except OSError as error:
        raise runlog.no_folder(folder, error) from error
    if out_dir and place == folder:
        _check_free(folder, files)


def _check_free(folder: Path, files: Sequence[str]) -> None:
    """Refuse a folder in which a run of these files would overwrite something."""
    runlog.check_free(folder)
    if STDIN in files and os.path.lexists(folder / runlog.KEPT_TEXT):
        raise InputError(
            f"--out-dir {folder} holds a {runlog.KEPT_TEXT} already, where standard input would be "
            "kept: name another folder"
        )


def resume(
    run: str,
    files: Sequence[str] = (),
    changes: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Run:
    """Go on with a run exactly where its last checkpoint is.

    Parameters
    ----------
    run : its folder, one of its checkpoints, or "latest": the newest run below ``runs/``
    files : nothing, or the run's own text
    changes : options by field name; only the resumable ones may differ from the run's
    on_progress : is told how far the reading of the text is

    Raises
    ------
    InputError : no such run, another text, or an option that may not change
    Ended : nothing is left to do
    """
    if not run:
        raise InputError("--resume is empty: name the folder of a run, or latest")
    path = checkpoint.newest_run() if run == "latest" else Path(run)
    folder = path.parent if os.path.isfile(path) else path
    with contextlib.ExitStack() as lock:
        before = _checksum(folder, path)
        resumed = _resumed(folder, path, files, changes or {}, on_progress)
        lock.enter_context(runlog.lock(folder))
        if _checksum(folder, path) != before:  # another process has trained it until now
            resumed = _resumed(folder, path, files, changes or {}, on_progress)
        resumed.lock = lock.pop_all()
    return resumed


def _resumed(
    folder: Path,
    path: Path,
    files: Sequence[str],
    changes: dict[str, Any],
    on_progress: Progress | None,
) -> Run:
    """The run in a folder as it is in the checkpoint ``path``, or last if that is the folder."""
    config_file = folder / "config.json"
    said = facts.check(_said(config_file, path), RUN_FACTS, str(config_file))
    _check_writable(folder)
    source = _source(folder, path)
    config, vocabulary = _described(said, source, config_file)
    known = said["corpus"]
    if source is not None:
        known = facts.check(source.metadata["corpus"], facts.CORPUS, f"'corpus' of {source.path}")
    prints = known["fingerprint"], known["val_fingerprint"]
    corpus = _same_corpus(folder, files, config, known, on_progress)
    config = _changed(config, changes, len(corpus))
    val_file = config.data.val_file
    if val_file is not None and not are_files([val_file]):
        raise InputError(f"--val-file {val_file} of {folder} is no file: put it back")
    val = _val_text(config, on_progress)
    if (corpus.fingerprint, _fingerprint(val)) != prints:
        which = "text" if corpus.fingerprint != prints[0] else f"--val-file {config.data.val_file}"
        raise InputError(
            f"the {which} is not the one that {folder} was trained on: give that one as FILE, "
            "or start a new run"
        )
    if config.data.bptt == "full":
        _check_documents(folder, corpus, known)
    text = dataclasses.replace(_prepare(corpus, val, config, vocabulary), notes=[])
    if not files:  # else the text may have moved: the next checkpoint says where
        text.facts = known
    resumed = Run(folder, config, text)
    resumed.inherits = said["init_from"] is not None
    if source is None:
        resumed.begin()
        return resumed
    resumed.restore(source)
    _check_unfinished(resumed, changes)
    as_saved = {"config": config.to_json(), "corpus": text.facts}
    resumed.goes_back = source.path.name != LAST
    resumed.is_last = not (resumed.goes_back or resumed.abandoned)
    resumed.is_last &= as_saved.items() <= source.metadata.items()
    return resumed


def train(
    files: str | Path | Sequence[str | Path],
    *,
    out_dir: str | Path | None = None,
    init_from: str | Path | None = None,
    on_unknown: str = "add",
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> LanguageModel:
    """Train a model and return its best version.

    Parameters
    ----------
    files : one or more text files, folders or .gz files
    out_dir : the run's folder; None is ``runs/<corpus>``, numbered if taken
    init_from : a run or checkpoint whose weights and vocabulary to begin with
    on_unknown : for ``init_from``: "add", "map" or "error"
    on_event : called with every event, also after every single step; `charrnn.runlog` describes
        them
    options : the command line's options under their field names, such as ``hidden_size=128``

    Raises
    ------
    InputError : something of this is wrong; nothing has been written
    Diverged : the loss is no longer finite
    """
    paths = [files] if isinstance(files, (str, Path)) else files
    run = start(
        [str(path) for path in paths],
        Config.from_options(options),
        str(out_dir) if out_dir is not None else None,
        str(init_from) if init_from is not None else None,
        on_unknown,
        options,
    )
    for event in run.events(0.0 if on_event is not None else PACE):
        if on_event is not None:
            on_event(event)
        if event["event"] == "end" and event["reason"] == "diverged":
            raise Diverged(event["message"])
    return load(run.folder)


def _check_writable(folder: Path) -> None:
    """InputError if a checkpoint could not be saved in the folder of a run."""
    try:
        atomic.try_folder(folder)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; allow it, or go on with a copy of the run"
        ) from error
    for path in folder.glob("*.safetensors"):
        if path.is_dir():
            raise InputError(f"{path} is a folder, where a checkpoint is to be: remove it")


def _said(config_file: Path, path: Path) -> Any:
    """What config.json says of the run that ``path`` named."""
    try:
        return runlog.read_json(config_file)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_run(path) from None
    except OSError as error:
        raise InputError(f"cannot read {config_file}: {error.strerror or error}") from error


def _no_run(path: Path) -> InputError:
    """The error for a ``path`` that names neither a run nor a checkpoint of one."""
    if not os.path.exists(path) and os.path.isfile(path.parent / "config.json"):
        there = ", ".join(other.name for other in _others(path)) or "none yet"
        return InputError(
            f"{path} does not exist: name {path.parent}, or a checkpoint in it (there are {there})"
        )
    what = "is no file of a run" if os.path.isfile(path) else "holds no run"
    return InputError(f"{path} {what}: name the folder that charrnn train made")


def _source(folder: Path, path: Path) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from: the one that was named, or the last; None if none was made."""
    last = _source_path(folder, path)
    trouble = f"{folder} has lost its last.safetensors:"
    if last.is_file():
        try:
            return checkpoint.load(last)
        except InputError as error:
            trouble = f"{error};"
            if isinstance(error.__cause__, OSError) or not _others(last):
                raise
    others = _others(last)
    if others:  # beginning anew would overwrite them
        names = ", ".join(other.name for other in others)
        raise InputError(
            f"{trouble} go on from another one with --resume {others[0]} (there are {names})"
        )
    return None


def _others(path: Path) -> list[Path]:
    """The checkpoints of the run of one beside it, without what the run began with."""
    found = checkpoint.of_run(path.parent)
    return sorted(other for other in found if other.name not in (path.name, checkpoint.START))


def _source_path(folder: Path, path: Path) -> Path:
    return path if path.is_file() else folder / LAST


def _checksum(folder: Path, path: Path) -> str | None:
    """That of the checkpoint to go on from; None if there is none, or a damaged one."""
    with contextlib.suppress(InputError):
        return checkpoint.checksum(_source_path(folder, path))
    return None


def _described(
    said: dict[str, Any], source: checkpoint.Checkpoint | None, config_file: Path
) -> tuple[Config, Vocabulary]:
    """Config and vocabulary of a run that has said this, and of its checkpoint if there is one."""
    try:
        vocabulary = Vocabulary.from_json(said["vocabulary"])
        if source is None:
            config = Config.from_json(said["config"])
            check_room(config.model, vocabulary.size)
            return config, vocabulary
    except InputError as error:
        raise InputError(f"{config_file}: {error}; the file is damaged, restore it") from error
    config, own = described(source)
    if own != vocabulary:
        raise InputError(
            f"{config_file} is of another vocabulary than {source.path}: one of them belongs to "
            "another run, restore it"
        )
    return config, vocabulary


# -- options ------------------------------------------------------------------------------------


def _resolved(config: Config) -> Config:
    """``config`` with the defaults that depend on other options written out."""
    val_file = config.data.val_file
    return Config.from_options(
        config.options()
        | {
            "learning_rate": config.train.peak_learning_rate,
            "weight_decay": config.train.decay,
            "val_file": str(Path(val_file).resolve()) if val_file is not None else None,
        }
    )


def _inherit(config: Config, parent: Config, given: Collection[str]) -> Config:
    """``config`` with the parent's architecture; options that contradict it are refused."""
    ours, theirs = config.options(), parent.options()
    for name in (*ARCHITECTURE, "level"):
        if name in given and ours[name] != theirs[name]:
            raise InputError(
                f"{flag(name)} is {ours[name]}, but the model of --init-from has {theirs[name]}: "
                "leave the option out"
            )
    if config.data.min_count > 1:
        raise InputError(
            "--min-count makes a vocabulary, but --init-from brings one: leave one of them out"
        )
    return Config.from_options(ours | {name: theirs[name] for name in (*ARCHITECTURE, "level")})


def _changed(config: Config, changes: dict[str, Any], length: int) -> Config:
    """``config`` with the changes, which may concern resumable options alone.

    ``length`` is that of the text: a ``--val-frac`` that divides it as the run's own is no change.
    """
    fields = {
        f.name: f for section in Config.sections().values() for f in dataclasses.fields(section)
    }
    options = config.options()
    for name, value in changes.items():
        same = value == options[name] or (
            name == "val_file" and str(Path(value).resolve()) == options[name]
        )
        if name == "val_frac":
            data = dataclasses.replace(config.data, val_frac=value)
            same = _sizes(data, length) == _sizes(config.data, length)
        if not fields[name].metadata["resumable"] and not same:
            raise InputError(
                f"{flag(name)} cannot change when a run is resumed: it is "
                f"{_shown(name, options[name])}; start a new run, or use --init-from"
            )
        if not same:
            options[name] = value
    return Config.from_options(options)


def _sizes(data: DataConfig, length: int) -> tuple[int, int, int]:
    return part_sizes(length, data.val_frac, data.test_frac)


def _shown(name: str, value: Any) -> str:
    """An option's value for a message: None is a default that is no value of the option."""
    if name == "val_frac" and value is None:
        return f"{VAL_FRAC:g}, but at most {MOST_VAL:,} characters"
    return "not set" if value is None else str(value)


def _check_unfinished(run: Run, changes: dict[str, Any]) -> None:
    """Ended if the run has, and nothing more is asked of it."""
    p, train = run.progress, run.config.train
    limit = "--epochs" if train.max_steps is None else "--max-steps"
    if None not in (train.max_steps, train.epoch_limit):
        limit = "--epochs and --max-steps"
    if p.step > run.total_steps:
        raise InputError(
            f"{run.folder} is at step {p.step:,} already, {run.total_steps:,} are asked for: "
            f"give more {limit}"
        )
    if p.step < run.total_steps and (p.finished != "patience" or "patience" in changes):
        p.finished = None
        return
    path = run.folder / "metrics.jsonl"
    ended = path.is_file() and any(
        event["event"] == "end" and event["reason"] == p.finished
        for event in runlog.read(path, {"end": {"reason": str}})
    )
    if ended:  # else it was killed between its last checkpoint and its last line
        more = "--patience 0 or a larger one" if p.finished == "patience" else f"more {limit}"
        raise Ended(f"{run.folder} has ended after {p.step:,} steps: to train on, give {more}")


# -- text ---------------------------------------------------------------------------------------


def _read(
    files: Sequence[str], config: Config, on_progress: Progress | None, kept: bool = False
) -> Corpus:
    data = config.data
    return read_corpus(
        files, level=data.level, encoding=data.encoding, kept=kept, on_progress=on_progress
    )


def _val_text(config: Config, on_progress: Progress | None) -> Corpus | None:
    """The text of ``--val-file``."""
    val_file = config.data.val_file
    if val_file is None:
        return None
    if val_file == STDIN:
        raise InputError("--val-file is -: name a file; standard input is for the training text")
    return _read([val_file], config, on_progress)


def _fingerprint(text: Corpus | None) -> str | None:
    return text.fingerprint if text is not None else None


def _same_corpus(
    folder: Path,
    files: Sequence[str],
    config: Config,
    known: dict[str, Any],
    on_progress: Progress | None,
) -> Corpus:
    """The text of a run again: from ``files``, from its sources, or as it was kept."""
    if files:
        return _read(files, config, on_progress)
    if STDIN in known["sources"]:
        corpus = _read([str(folder / runlog.KEPT_TEXT)], config, on_progress, kept=True)
        return dataclasses.replace(corpus, documents=tuple(_documents(folder, known) or [0]))
    try:
        for source in known["sources"]:
            if not are_files([source]):
                raise InputError(f"{source!r} does not exist or is no file")
        return _read(known["sources"], config, on_progress)
    except InputError as error:
        raise InputError(f"{error}; if the text has moved, give it as FILE") from error


def _documents(folder: Path, known: dict[str, Any]) -> list[int] | None:
    """Where the files of a run's text began in it, if the run says so."""
    facts.check(known, {"documents": list[int]}, f"'corpus' of {folder}", lacking=True)
    return known.get("documents")


def _check_documents(folder: Path, corpus: Corpus, known: dict[str, Any]) -> None:
    """InputError if the text is the run's, but in other files: each is a sequence."""
    ours, theirs = list(corpus.documents), _documents(folder, known)
    if theirs is None or ours == theirs:
        return
    given, needed = (f"{len(d)} file{'s' if len(d) > 1 else ''}" for d in (ours, theirs))
    others = "other ones" if given == needed else needed
    raise InputError(
        f"the text of {folder} is in {given}, but was in {others}, each a sequence of --bptt full: "
        "give the same files as FILE, or start a new run"
    )


def _vocabulary(
    corpus: Corpus,
    val: Corpus | None,
    config: Config,
    parent: LanguageModel | None,
    on_unknown: str,
) -> Vocabulary:
    counts = Counter(corpus.counts)
    if val is not None:  # all characters of all splits
        counts.update(val.counts)
    found = dict(sorted(counts.items()))
    if parent is None:
        return Vocabulary.build(found, config.data.level, config.data.min_count)
    if on_unknown == "add":
        return parent.vocabulary.extended(found)
    parent.vocabulary.translation(found, on_unknown)  # refuses what it must
    return parent.vocabulary


def _prepare(
    corpus: Corpus, val_text: Corpus | None, config: Config, vocabulary: Vocabulary
) -> Text:
    """The text as ids and splits, with a batch and window that fit it."""
    data = config.data
    unknown = "map" if vocabulary.unknown is not None else "error"
    ids = corpus.encode(vocabulary, unknown)
    val_frac = data.val_frac if val_text is None else 0.0
    train, val, test = split(ids, val_frac, data.test_frac)
    notes = _doubts(corpus)
    if val_text is not None:
        val = val_text.encode(vocabulary, unknown)
        if len(val) < 2:
            raise InputError(
                f"--val-file {data.val_file} has fewer than 2 characters: give a longer text"
            )
    for part, share, name in ((val, val_frac, "validation"), (test, data.test_frac, "test")):
        if share != 0 and not len(part):
            notes.append(f"the text is too short for a {name} part: there is none")
    if config.train.patience and not len(val):
        notes.append("--patience has no effect: there is no validation text")
    elif config.train.patience and not config.train.eval_every:
        notes.append(
            "--patience has no effect: with --eval-every 0 the only validation is the last"
        )
    documents = [begin for begin in corpus.documents if begin < len(train)]
    steps, message = plan(data, train, documents, config.train.seed)
    notes += [message] if message else []
    known: dict[str, Any] = {
        "name": corpus.name,
        "sources": [s if s == STDIN else str(Path(s).resolve()) for s in corpus.sources],
        "fingerprint": corpus.fingerprint,
        "val_fingerprint": _fingerprint(val_text),
        "chars": len(corpus),
    }
    if STDIN in corpus.sources or data.bptt == "full":  # of a pipe, what is kept is one file
        known["documents"] = list(corpus.documents)
    return Text(vocabulary, train, val, test, steps, known, notes)


def _doubts(corpus: Corpus) -> list[str]:
    """What suggests that the text has not been read as it was meant."""
    share = corpus.counts.get("\0", 0) / len(corpus)
    if share < NUL_SHARE:
        return []
    return [
        f"{share:.0%} of the characters are NUL: if the text is UTF-16, give --encoding utf-16-le "
        "or utf-16-be; if it is no text, --level byte"
    ]


def _inherit_weights(model: Model, parent: Model) -> None:
    """Copy the parent's weights; rows and columns of new characters stay as drawn."""
    for name, old in parent.params.views.items():
        model.params.views[name][tuple(map(slice, old.shape))] = old
    model.changed()
