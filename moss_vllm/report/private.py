"""What must not be published: access keys stop a publication, paths and hosts are replaced by names.

The patterns are the forms that the services document for their keys. detect-secrets, the usual library, had
no release since 2024 and reports words of a tokenizer's vocabulary as keys.
"""

import base64
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

QUOTE = r"(?:\\?[\"'])?"
# A tokenizer's own settings have names such as eos_token.
KEY_WORD = r"(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)(?<!image_)(?<!video_)"
KEY_WORD += r"token|api[_-]?key|access[_-]?key|secret|passw(?:or)?d|passphrase|credentials?)"
SECRETS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "a Hugging Face token": r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}",
        "a Weights & Biases key": r"\bwandb_v1_\w{20,}|(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])",
        "an AWS key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
        "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
        "a GitLab token": r"\bglpat-[\w-]{16,}",
        "an OpenAI or Anthropic key": r"\bsk-[\w-]{16,}",
        "a Stripe key": r"\b[rs]k_(?:live|test)_\w{10,}",
        "a Slack token": r"\bxox[a-z]-[\w-]{10,}|\bxapp-[\w-]{10,}|hooks\.slack\.com/services/\w+",
        "a Google key": r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",
        "an Azure key": r"(?i)\b(?:AccountKey|SharedAccessSignature|sig)=[A-Za-z0-9+/%]{20,}",
        "a signed address": r"(?i)[?&][\w-]*(?:signature|key)=[A-Za-z0-9+/%]{20,}",
        "a Databricks or DigitalOcean token": r"\bdapi[0-9a-f]{32}\b|\bdo[opr]_v1_[0-9a-f]{32,}",
        "a line of netrc": r"\blogin\s+\S+\s+password\s+\S{4,}",
        "a package index's token": r"\bpypi-[\w-]{16,}|\bnpm_[A-Za-z0-9]{20,}",
        "a SendGrid key": r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
        "a key of a model service": r"\b(?:r8_|gsk_|nvapi-|tgp_v1_|fw_|xai-|pplx-|jina_)[\w-]{20,}",
        "a key of a service": r"\b(?:hvs\.|shpat_|lin_api_|dp\.pt\.|sq0[a-z]{3}-|ATATT3x)[\w-]{16,}",
        "a bot's token": r"\b[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}|\b\d{8,10}:AA[\w-]{32,}",
        "a cookie": r"(?i)\b(?:set-)?cookie\\?[\"']?\s*[:=]\s*\\?[\"']?[\w-]+=[^\s;]{8,}",
        "a password of a command": r"\bcurl\b[^\n]*\s(?:-u|--user)[ =]?\S+:\S{4,}|\bsshpass\s+-p\s*\S{4,}",
        "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|\bPuTTY-User-Key-File|\bAGE-SECRET-KEY-1",
        "a Twilio key": r"\b(?:AC|SK)[0-9a-f]{32}\b",
        "a Mailgun key": r"\bkey-[0-9a-z]{32}\b|\b[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}\b",
        "a Neptune token": r"\beyJhcGlfYWRkcmVzcyI6[\w+/=-]{16,}",  # base64 of {"api_address":
        "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
        "a name and password in an address": r"(?i):(?:\\?/){2}[^/\s:@\"'<>|]*(?::|%3A)[^/\s@\"'<>|]+@"
        r"|://[\w-]{16,}@",
        "an authorisation header": r"(?i)\bbearer\s+[\w.~+/-]{8,}|\bauthorization\W{1,5}\w+\s+[\w.~+/-]{8,}",
    }.items()
}
DIGEST = r"md5|sha(?:\d|\b)|hash|digest|checksum|fingerprint|revision|commit"
SECRETS_BY_NAME = {  # known by the word beside them; a vocabulary is not searched for these
    kind: re.compile(pattern)
    for kind, pattern in {
        "a key's flag": rf"(?i)--?[\w-]*(?:{KEY_WORD}|[_-]key|[_-]auth)(?![\w-]){QUOTE}[=,:\s]+(?!--?\w)"
        rf"{QUOTE}[^\s\"'<\\]{{4,}}",
        "a key's variable": rf"(?i)(?:{KEY_WORD}|_key)\b\s*=\s*{QUOTE}[^\s\"'<=,;)\\]{{6,}}",
        "a password's variable": rf"(?i)(?<![a-z])(?:pwd|pass)\s*=\s*{QUOTE}[^\s\"'<=,;)\\/]{{4,}}"
        rf"|--pass[= ]{QUOTE}[^\s\"'<\\-]{{4,}}",
        "a key's setting": rf"(?i)(?:{KEY_WORD}|[_-]key|\"key|\"auth(?:orization)?)\\?\"?\s*:\s*{QUOTE}"
        r"(?!true|false|null)[^\s\"'<\\,{}\[\]]{6,}",
        # Several services, such as Comet and Datadog, have bare keys of 32 hexadecimal digits.
        "a key of 32 digits": r"(?i)(?:key|token|secret|password|credential)s?\b"
        rf"(?:(?!{DIGEST})[^\n]){{0,24}}?(?<![0-9A-Za-z])[0-9a-f]{{32}}(?![0-9A-Za-z])",
    }.items()
}
ALL_SECRETS = SECRETS | SECRETS_BY_NAME
REVISION = re.compile(  # what stands before the 40 digits of a commit, which are no key
    r"(?i)(?:(?:revision|commit|sha|hash)\w*(?: id| is| of \w+)?\W{1,6}"
    r"|/(?:tree|blob|resolve|raw|archive|commit)/|(?:\.git|//[^\s@]+|[\w.-]+/[\w.-]+(?::[\w.-]+)?)@)$"
)
BEFORE = 80  # characters that REVISION looks back at
# Also over several lines, as the command base64 writes them.
BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{24,}(?:(?:\\n|\r?\n)[A-Za-z0-9+/]{4,})*={0,2}")
LINE_END = re.compile(r"\\n|\s")

HOMES = ("home", "homes", "users", "user", "u")  # folders that hold one folder per person
PUBLIC_HOSTS = ("huggingface.co", "hf.co", "github.com", "arxiv.org")
END = r"[^\s\"'`<>|,;()\[\]{}]"
PLACES = re.compile(
    rf"(?P<url>[A-Za-z][\w+.-]*://{END}+)"
    rf"|(?P<remote>(?<![\w/.])[\w.+-]+(?:@[\w.-]+)?:~?/{END}*)"
    rf"|(?P<share>\\\\{END}+|(?<!\w)[A-Za-z]:[\\/]{END}+)"
    rf"|(?P<path>(?<![\w.~/<&:%*)\]-])(?:~[\w.-]*/|/|(?:\.\./)+){END}*\w{END}*)"
    r"|(?P<account>(?<![\w.])[\w.+-]+@[A-Za-z][\w-]*(?:\.[\w-]+)*)"
)

WHOLE_PATH = re.compile(  # or an address whose host has no domain
    r"/[^/]+/|~[\w.-]*/\w|(?:\.\./)+\w|file://|[A-Za-z]:[\\/]\w|\\\\\w|[a-z]+://[\w-]+(?::\d+)?(?:/|$)"
)


def find_secrets(text: str, *, vocabulary: bool = False) -> Iterator[tuple[int, str]]:
    """The line and the kind of everything that looks like an access key, with the key's first letters."""
    for kind, pattern in (SECRETS if vocabulary else ALL_SECRETS).items():
        for match in pattern.finditer(text):
            if not _is_revision(match):
                yield _line_and_kind(text, match, kind)
    for match in BASE64.finditer(text):
        if _hides_secret(match[0]):
            yield _line_and_kind(text, match, "a key in base64")


def _line_and_kind(text: str, match: re.Match[str], kind: str) -> tuple[int, str]:
    start = " ".join(match[0][:4].split())
    return text.count("\n", 0, match.start()) + 1, f"{kind} ({start}...)"


def _is_revision(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - BEFORE) : match.start()]
    return match[0].isalnum() and REVISION.search(before) is not None


def _hides_secret(encoded: str) -> bool:
    """Whether this is base64 of a text with an access key, such as a netrc."""
    for candidate in (encoded, LINE_END.split(encoded)[0]):  # the lines after the first may be other words
        joined = LINE_END.sub("", candidate).rstrip("=")
        try:
            text = base64.b64decode(joined + "=" * (-len(joined) % 4)).decode("ascii")
        except ValueError:
            continue
        return any(pattern.search(text) for pattern in ALL_SECRETS.values())
    return False


def hide_secrets(text: str) -> str:
    """The text with every access key cut down to its first letters."""

    def shorten(match: re.Match[str]) -> str:
        return match[0] if _is_revision(match) else f"{match[0][:4]}***"

    for pattern in ALL_SECRETS.values():
        text = pattern.sub(shorten, text)
    return BASE64.sub(lambda match: f"{match[0][:4]}***" if _hides_secret(match[0]) else match[0], text)


def without_places(value: Any, *, key: str = "") -> Any:
    """A record's value with names in place of paths and addresses; `command` stays a command line."""
    if isinstance(value, dict):
        return {without_places(k): without_places(v, key=k) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        try:
            return shlex.join(_word(word) for word in shlex.split(value))
        except ValueError:  # an unclosed quote
            return PLACES.sub(_name_of, value)
    return _word(value)


def without_path(value: Any) -> Any:
    """A value with the last name in place of whole values that are paths; for files that are not records."""
    if isinstance(value, dict):
        return {k: without_path(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_path(each) for each in value]
    whole = isinstance(value, str) and "\n" not in value and len(value) < 4096
    return _last(value) if whole and WHOLE_PATH.match(value) else value


def _word(word: str) -> str:
    """A word of a command line or another text, which may be a path or hold paths."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    named = without_path(value)
    return flag + equals + (named if named != value else PLACES.sub(_name_of, value))


def _name_of(match: re.Match[str]) -> str:
    if match["account"]:
        return "ACCOUNT"
    if match["url"] and match[0].split("://")[1].split("/")[0] in PUBLIC_HOSTS:
        return match[0]
    return _last(match[0])


def _last(path: str) -> str:
    """The last name of a path or address; HOME for a person's folder, HOST for an address without a path."""
    if "://" in path:
        _, slash, path = re.split(r"[?#]", path.split("://", 1)[1])[0].partition("/")
        if not path.strip("/"):
            return "HOST"
        path = slash + path
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    parts = [part for part in kind(path).parts if part.strip("/\\")]
    in_home = len(parts) > 1 and parts[-2].lower() in HOMES
    nameless = not parts or parts[-1] in ("..", "root") or parts[-1].startswith("~")
    return "HOME" if in_home or nameless else parts[-1]
