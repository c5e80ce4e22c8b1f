"""Read XML annotation files of any encoding without expanding or fetching entities.

Needs the standard library only.
"""

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from ..errors import UserError

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z][\w.:-]{0,40})["']""")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
REPLACED = "\ufffd"  # stands for bytes that are not text in the file's encoding


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file into its root element.

    The encoding is that of the byte order mark, the declared one, or UTF-8. Bytes that are not UTF-8 (tools on Windows
    write paths in the code page of the machine) become U+FFFD, so that the rest of the file can be read; ``text_of``
    refuses them in a value that is used.

    Raises:
        UserError: the file is missing, not well-formed, or declares a document type or entities.
    """

    def refuse(*_):
        raise UserError(f"{path}: declares a document type or entities, which no annotation needs; not read")

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    # Entities can only be declared inside a DOCTYPE: refused there, nothing is ever expanded or fetched.
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(_decode(path.read_bytes()), True)
        return builder.close()
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (expat.ExpatError, LookupError, ValueError, AssertionError) as error:  # LookupError: an unknown encoding
        raise UserError(f"{path}: not well-formed XML ({error})") from None


def _decode(content: bytes) -> str:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    declared = _DECLARED.match(content)
    encoding = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    if encoding.startswith(("utf-8", "utf-16", "utf-32")):  # a declaration in ASCII bytes cannot mean the latter two
        return content.decode("utf-8", errors="replace")
    return content.decode(encoding)


def text_of(element: ElementTree.Element, tag: str, path: Path, default: str | None = None) -> str:
    """Return the stripped text of the child ``tag``, or ``default`` if it is missing or empty.

    Raises:
        UserError: there is neither, or the text holds bytes of an unknown encoding.
    """
    text = (element.findtext(tag) or "").strip()
    if REPLACED in text:
        raise UserError(
            f"{path}: <{tag}> is not UTF-8 text and the file declares no other encoding; save it as UTF-8, or declare "
            f'the encoding in its first line: <?xml version="1.0" encoding="gb18030"?>'
        )
    if text:
        return text
    if default is None:
        raise UserError(f"{path}: <{element.tag}> has no <{tag}>")
    return default
