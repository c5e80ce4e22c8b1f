"""Read small YAML files, such as the data.yaml of a YOLO dataset, in bounded time and memory.

Scalars are strings as written: YAML 1.1 would turn the class names yes, no, on and off into booleans.
"""

from pathlib import Path

from ..errors import UserError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # with every alias expanded; the largest published sets have some 20,000 class names
MAX_DEPTH = 20


def read_yaml(path: Path) -> dict:
    """Read a YAML file whose top level is a mapping; an empty file is an empty dict.

    Returns:
        Nested dicts and lists of strings; a missing value is the empty string.

    Raises:
        UserError: the file cannot be read, is not YAML, or exceeds the limits above.
        ImportError: PyYAML is not installed.
    """
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path}: larger than {MAX_BYTES >> 20} MiB, which no description of a dataset is; not read"
            )
        text = path.read_text(encoding="utf-8-sig")
        # libyaml's parser where it is installed; the events are the same.
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        content = _build(events, path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:200]})") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a YAML file with keys and values")
    return content


class _Collection:
    """A mapping or sequence that is being read; ``size`` counts its nodes with every alias expanded."""

    def __init__(self, value: dict | list, anchor: str | None) -> None:
        self.value, self.anchor, self.size = value, anchor, 1
        self.key: str | None = None


def _build(events, path: Path):
    """Return the value of the first document of a stream of parser events; iterative, so depth costs no stack."""
    import yaml

    anchors: dict[str, tuple[object, int]] = {}
    open_collections: list[_Collection] = []
    root = None

    def refuse(reason: str) -> None:
        raise UserError(f"{path}: {reason}; not read")

    def add(value, size: int) -> None:
        """Put a finished value where it belongs."""
        nonlocal root
        if not open_collections:
            root = value
            return
        parent = open_collections[-1]
        parent.size += size
        if parent.size > MAX_NODES:
            refuse(f"holds more than {MAX_NODES} entries")
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.key is None:
            if not isinstance(value, str):
                refuse("has a key that is not a string")
            if value == "<<":
                refuse("merges keys with <<, which is not supported; write the entries out")
            if value in parent.value:
                refuse(f"has the key {value[:40]!r} twice")
            parent.key = value
        else:
            parent.value[parent.key], parent.key = value, None

    for event in events:
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                anchors[event.anchor] = event.value, 1
            add(event.value, 1)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                refuse(f"refers to {event.anchor[:40]!r}, which is not defined before")
            add(*anchors[event.anchor])
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if len(open_collections) == MAX_DEPTH:
                refuse(f"nested more than {MAX_DEPTH} levels deep")
            value: dict | list = {} if isinstance(event, yaml.MappingStartEvent) else []
            open_collections.append(_Collection(value, event.anchor))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            finished = open_collections.pop()
            if finished.anchor:
                anchors[finished.anchor] = finished.value, finished.size
            add(finished.value, finished.size)
        elif isinstance(event, yaml.DocumentEndEvent):
            return root
    return root
