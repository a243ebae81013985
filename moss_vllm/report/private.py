"""What is not published: access keys, which stop a publication, and the paths and hosts of a machine.

The patterns are the forms that the services document for their keys. (detect-secrets, the usual library, had
no release since 2024, and takes the words of a vocabulary for keys.)
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

QUOTE = r"(?:\\?[\"'])?"
# A tokenizer's own settings are named eos_token and the like.
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
        "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
        "a name and password in an address": r"(?i):(?:\\?/){2}[^/\s:@\"'<>|]*(?::|%3A)[^/\s@\"'<>|]+@"
        r"|://[\w-]{16,}@",
        "an authorisation header": r"(?i)\bbearer\s+[\w.~+/-]{8,}|\bauthorization\W{1,5}\w+\s+[\w.~+/-]{8,}",
    }.items()
}
NAMED = {  # by the name beside it; not sought in a vocabulary
    kind: re.compile(pattern)
    for kind, pattern in {
        "a key's flag": rf"(?i)--?[\w-]*(?:{KEY_WORD}|[_-]key|[_-]auth)(?![\w-]){QUOTE}[=,:\s]+(?!--?\w)"
        rf"{QUOTE}[^\s\"'<\\]{{4,}}",
        "a key's variable": rf"(?i)(?:{KEY_WORD}|_key)\b\s*=\s*{QUOTE}[^\s\"'<=,;)\\]{{6,}}",
        "a password's variable": rf"(?i)(?<![a-z])(?:pwd|pass)\s*=\s*{QUOTE}[^\s\"'<=,;)\\/]{{4,}}"
        rf"|--pass[= ]{QUOTE}[^\s\"'<\\-]{{4,}}",
        "a key's setting": rf"(?i)(?:{KEY_WORD}|[_-]key|\"key|\"auth(?:orization)?)\\?\"?\s*:\s*{QUOTE}"
        r"(?!true|false|null)[^\s\"'<\\,{}\[\]]{6,}",
    }.items()
}
REVISION = re.compile(r"(?i)(?:revision|commit|sha)\W{1,6}$")  # 40 digits that are no key

PUBLIC_HOSTS = ("huggingface.co", "hf.co", "github.com", "arxiv.org")
END = r"[^\s\"'`<>|,;()\[\]{}]"
PLACES = re.compile(
    rf"(?P<url>[A-Za-z][\w+.-]*://{END}+)"
    rf"|(?P<remote>(?<![\w/.])[\w.+-]+(?:@[\w.-]+)?:~?/{END}*)"
    rf"|(?P<share>\\\\{END}+|(?<!\w)[A-Za-z]:[\\/]{END}+)"
    rf"|(?P<path>(?<![\w.~/<&:%*)\]-])(?:~[\w.-]*/|/|(?:\.\./)+){END}*\w{END}*)"
    r"|(?P<account>(?<![\w.])[\w.+-]+@[A-Za-z][\w-]*(?:\.[\w-]+)*)"
)

WHOLE_PATH = re.compile(r"/[^/]+/|~[\w.-]*/\w|(?:\.\./)+\w|file://|[A-Za-z]:[\\/]\w|\\\\\w")


def find_secrets(text: str, *, vocabulary: bool = False) -> Iterator[tuple[int, str]]:
    """The line and the kind of everything that looks like an access key; of the key its first letters."""
    for kind, pattern in (SECRETS if vocabulary else SECRETS | NAMED).items():
        for found in pattern.finditer(text):
            if found[0].isalnum() and REVISION.search(text[max(0, found.start() - 20) : found.start()]):
                continue
            start = " ".join(found[0][:4].split())
            yield text.count("\n", 0, found.start()) + 1, f"{kind} ({start}...)"


def hide_secrets(text: str) -> str:
    """The text with every access key cut down to its first letters."""
    for pattern in (SECRETS | NAMED).values():
        text = pattern.sub(lambda found: f"{found[0][:4]}***", text)
    return text


def without_places(value: Any, *, key: str = "") -> Any:
    """A value of a record with names in place of paths and addresses; `command` stays a command line."""
    if isinstance(value, dict):
        return {without_places(k): without_places(v, key=k) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        try:
            return shlex.join(_word(word) for word in shlex.split(value))
        except ValueError:  # a quote that does not end
            return PLACES.sub(_name_of, value)
    return _word(value)


def without_path(value: Any) -> Any:
    """A value with the last name in place of what is a path as a whole; for files that are no records."""
    if isinstance(value, dict):
        return {k: without_path(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_path(each) for each in value]
    whole = isinstance(value, str) and "\n" not in value and len(value) < 4096
    return _last(value) if whole and WHOLE_PATH.match(value) else value


def _word(word: str) -> str:
    """A word of a command line, or another text: the whole of it a path, or with paths in it."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    named = without_path(value)
    return flag + equals + (named if named != value else PLACES.sub(_name_of, value))


def _name_of(found: re.Match[str]) -> str:
    if found["account"]:
        return "ACCOUNT"
    if found["url"] and found[0].split("://")[1].split("/")[0] in PUBLIC_HOSTS:
        return found[0]
    return _last(found[0])


def _last(path: str) -> str:
    """The last name of a path; of somebody's home not even that."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    parts = [part for part in kind(path).parts if part.strip("/\\")]
    in_home = len(parts) > 1 and parts[-2].lower() in ("home", "users")
    alone = len(parts) < 2 and (path.startswith("~") or "://" in path)
    return "HOME" if in_home or alone or not parts or parts[-1] in ("..", "~", "root") else parts[-1]
