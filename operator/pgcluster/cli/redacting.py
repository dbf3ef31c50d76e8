"""Taking secrets out of what goes into a report. Pure.

Three nets, since each has holes: the values that are known to be secret, in every form in which
they may have been written; what stands behind a name that says that it is a secret; and what looks
like a credential wherever it stands. Too much taken is a report with a gap, too little is a leak.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

MARK = "[REDACTED]"

# Shorter ones would be found in every other word; they are caught by where they stand.
_SHORTEST = 6
# A line of a key that was logged by itself.
_SHORTEST_LINE = 24
# How far before such a word a name begins.
_PREFIX = 60

_WORDS = (
    r"password|passwd|passphrase|passcode|pgpass|secret|token|credential|authorization|cookie"
    r"|api[_.-]?key|access[_.-]?key|account[_.-]?key|private[_.-]?key|encryption[_.-]?key"
    r"|signing[_.-]?key|connection[_.-]?string|(?<![a-z])(?:pass|pwd|dsn)(?![a-z])"
)
_KEY = re.compile(rf"(?i){_WORDS}")
# Names with such a word in them that say where a secret is, or how it is kept, and not what it is.
_HARMLESS = re.compile(
    r"(?i)secret_?names?$|secret_?key_?refs?$|secret_?refs?$|pull_?secrets$|password_?secrets?$"
    r"|password_?encryption$|token_?expiration|automount|secret_?type$|token_?path$"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PLAIN = ("", "true", "false", "null", "none", "{}", "[]", MARK.strip("[]"), MARK)

_QUOTED = r'"(?:[^"\\]|\\.)*"?|\'(?:[^\'\\]|\\.|\'\')*\'?'
# name=value, name: value, "name": "value", also as JSON within JSON. A bare value goes on behind a
# quote that ends nothing.
_ASSIGNED = re.compile(
    rf"(?i)(?P<name>(?:{_WORDS})[\w.-]{{0,60}})(?P<between>\\*[\"']?\s*(?::=|=>|[:=])\s*)"
    rf"(?P<value>\\+\"(?:(?!\\+\").)*(?:\\+\")?|{_QUOTED}"
    r"|[^\s\"']+(?:[\"'](?![\s,:;)}\]]|\Z)[^\s\"']*)*)"
)
# The same as a block of YAML.
_BLOCK = re.compile(
    rf"(?im)(?P<name>(?:{_WORDS})[\w.-]{{0,60}})(?P<between>[\"']?:\s*)"
    r"(?P<value>[|>][+-]?[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\Z))+)"
)
# Each with words of which one is in every text that it finds something in, in lower case: to look
# for those first makes it a hundred times as quick.
_Net = tuple[tuple[str, ...], re.Pattern[str], str]


def _net(needles: tuple[str, ...], pattern: str, by: str) -> _Net:
    return needles, re.compile(pattern), by


# What may go over several lines.
_WHOLE: Sequence[_Net] = (
    # A private key, whole or cut off at its end, also as one line with \n in it.
    _net(
        ("private key",),
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:[\sA-Za-z0-9+/=:,.-]|\\+[nr])*?"
        r"(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|(?=[^\sA-Za-z0-9+/=:,.\\-])|\Z)",
        MARK,
    ),
    # … or at its beginning.
    _net(
        ("private key",),
        r"\A(?:[\sA-Za-z0-9+/=:,.-]|\\+[nr])*?-----END [A-Z0-9 ]*PRIVATE KEY-----",
        MARK,
    ),
    # SQL: PASSWORD '…', also cut off, or between dollars.
    _net(("password",), rf"(?i)\b(password\s+)(?:e|u&)?(?:{_QUOTED})", rf"\1'{MARK}'"),
    _net(("password",), r"(?is)\b(password\s+)\$(\w*)\$.*?(?:\$\2\$|\Z)", rf"\1'{MARK}'"),
    # pgbouncer's userlist, and a line of a password file.
    _net(('" "',), r'(?m)^(\s*"(?:[^"]|"")*"\s+)"(?:[^"]|"")*"', rf'\1"{MARK}"'),
    _net((":",), r"(?m)^([^:\s]+:(?:\d+|\*):[^:\s]*:[^:\s]*:)\S+$", rf"\1{MARK}"),
)
_IN_NAMES = (
    *("pass", "pwd", "dsn", "secret", "token", "credential", "authorization", "cookie", "key"),
    *("connection", "string"),
)
# What stands in one line.
_LINE: Sequence[_Net] = (
    # The password of a URI: up to its last @, for a password may have one.
    _net(("://",), r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@'\"<>]*:)[^\s'\"<>]+@", rf"\1{MARK}@"),
    # What PostgreSQL stores of a password.
    _net(("scram-sha-256$",), r"SCRAM-SHA-256\$[^\s'\"\\]+", MARK),
    _net(("md5",), r"\bmd5[0-9a-fA-F]{32}\b", MARK),
    # HTTP, and tokens by their shape.
    _net(
        ("bearer", "basic", "negotiate"),
        r"(?i)\b(bearer|basic|negotiate)\s+[A-Za-z0-9._~+/=-]{8,}",
        rf"\1 {MARK}",
    ),
    _net(("eyj",), r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?", MARK),
    _net(("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", MARK),
    _net(
        ("gh", "glpat-", "xox", "k_live_", "npm_", "hvs."),
        r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk_live_|rk_live_|npm_|hvs\.)[\w-]{10,}",
        MARK,
    ),
    _net(("aiza",), r"\bAIza[\w-]{30,}", MARK),
    # An argument of a command line, an element of XML.
    _net(_IN_NAMES, rf"(?i)(--?[\w-]*(?:{_WORDS})[\w-]*[ \t]+)[^\s-]\S*", rf"\1{MARK}"),
    _net(_IN_NAMES, rf"(?i)(<[\w:.-]*(?:{_WORDS})[\w:.-]*>)[^<]+(?=<)", rf"\1{MARK}"),
)
_SUSPECT = tuple(dict.fromkeys(needle for needles, *_ in _LINE for needle in needles))


class Redactor:
    """Takes secrets out of texts and objects; `count` is how many places it has changed."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for value in known for form in _forms(value)}
        # The longest first: one may be a part of another.
        self._known = sorted(forms, key=lambda form: (-len(form), form))
        self.count = 0

    def known(self, text: str) -> str:
        """Without the values that are known to be secret."""
        for form in self._known:
            if form in text:
                self.count += text.count(form)
                text = text.replace(form, MARK)
        return text

    def text(self, text: str) -> str:
        """Without any of it."""
        text = self._through(_WHOLE, self.known(text))
        if "|" in text or ">" in text:
            text = _BLOCK.sub(self._assigned, text)
        return "".join(map(self._line, text.splitlines(keepends=True)))

    def _line(self, line: str) -> str:
        lower = line.lower()
        if not _any(_SUSPECT, lower):
            return line
        line = self._through(_LINE, line)
        return _ASSIGNED.sub(self._assigned, line) if _any(_IN_NAMES, lower) else line

    def _through(self, nets: Sequence[_Net], text: str) -> str:
        lower = text.lower()
        for needles, pattern, by in nets:
            if _any(needles, lower):
                text, found = pattern.subn(by, text)
                self.count += found
        return text

    def manifest(self, found: Any) -> Any:
        """An object of the API without any of it, and without who manages which field."""
        if isinstance(found, Mapping):
            return self._mapping(found)
        if isinstance(found, list | tuple):
            return list(self._items(found))
        return self.text(found) if isinstance(found, str) else found

    def _mapping(self, found: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in found.items():
            if key in ("managedFields", "kubectl.kubernetes.io/last-applied-configuration"):
                continue
            scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
            hidden = scalar and str(value).lower() not in _PLAIN and sensitive(str(key))
            made[self.known(str(key))] = self._marked() if hidden else self.manifest(value)
        # An environment variable, a header: a name beside its value.
        name, value = found.get("name"), found.get("value")
        if isinstance(name, str) and isinstance(value, str) and value and sensitive(name):
            made["value"] = self._marked()
        return made

    def _items(self, found: Sequence[Any]) -> Iterator[Any]:
        """With `--password` and its value as two of them, as in a container's arguments."""
        before: Any = None
        for one in found:
            flag = isinstance(before, str) and before.startswith("-") and "=" not in before
            if flag and isinstance(one, str) and not one.startswith("-") and sensitive(before):
                yield self._marked()
            else:
                yield self.manifest(one)
            before = one

    def _assigned(self, match: re.Match[str]) -> str:
        start = match.start()
        before = re.search(r"[\w.-]*\Z", match.string[max(0, start - _PREFIX) : start])
        value = match["value"]
        if not sensitive((before[0] if before else "") + match["name"]):
            return match[0]
        if value.strip("\\\"',;)}").lower() in _PLAIN or value.startswith(MARK):
            return match[0]
        self.count += 1
        quoted = re.match(r"\\*[\"']", value)
        mark = quoted[0] if quoted else ""
        return f"{match['name']}{match['between']}{mark}{MARK}{mark}"

    def _marked(self) -> str:
        self.count += 1
        return MARK


def _any(needles: Iterable[str], lower: str) -> bool:
    return any(needle in lower for needle in needles)


def sensitive(name: str) -> bool:
    """Whether what stands behind a name is a secret, by the name."""
    words = _CAMEL.sub("_", name)
    return bool(_KEY.search(words)) and not _HARMLESS.search(words)


def _forms(value: str) -> Iterator[str]:
    """In which a secret may have been written."""
    text = value.strip()
    if len(text) < _SHORTEST:
        return
    for one in {value, text}:
        raw = one.encode()
        yield one
        yield base64.b64encode(raw).decode()
        yield base64.urlsafe_b64encode(raw).decode()
        yield raw.hex()
        yield quote(one)
        yield quote(one, safe="")
        yield quote_plus(one)
        yield json.dumps(one)[1:-1]
        yield json.dumps(one, ensure_ascii=False)[1:-1]
        yield one.replace("'", "''")
        yield one.replace("\\", "\\\\").replace("'", "\\'")
        yield one.replace('"', '""')
    lines = text.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= _SHORTEST_LINE)
