"""Read the answer out of the text that a model wrote, in Chinese and English.

Every benchmark whose answers are written text reads them here, natively and in lm-evaluation-harness alike,
one attempt or many. The forms are names for `extract` in a benchmark's YAML; a regular expression with one
group is the way out for anything else. An empty result means that no answer could be read.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Sequence

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_OPENING, _CLOSING = r"[\s\"'“‘「『(\[【<]*", r"[\s\"'”’」』)\]】]*"

_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*([^{}]+?)\s*\}")

_STATED_EN = (
    r"\b(?:answer|ans\b\.?|choice|option)(?:\s+(?:here|to|for|of)\b[^.:\n]{0,60}?)?\s*"
    r"(?:\bis\b(?!n)|(?:would|should|must|will|has to) be\b|[:=>])"
    r"(?:\s*(?:therefore|thus|then|clearly|most likely|probably|likely|indeed|:))*"
)
_STATED_ZH = (
    r"(?:(?:答案|正[确確]的?[选選][项項]|正[确確]的)\s*"
    r"(?:[应應][该該当當]?|就|[则則]|只能|[当當]然|可能)*\s*(?:[是为為选選:】\]]\s*)+)"
)
_STATEMENT = re.compile(f"{_STATED_EN}|{_STATED_ZH}", re.IGNORECASE)
"""What stands before an answer that is stated: "the answer is", "Answer:", 答案是, 【答案】."""

_CHOSEN = re.compile(
    r"\b(?:choose|chose|choosing|pick|select|go with|opt for)\b\s*:?"
    r"|\b(?:must|has to|should|would) be\s+(?=(?:option|choice|letter)\b)"
    r"|[选選](?:[择擇])?(?![项項])了?\s*[为為是:]?",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(r"\b(?:thus|therefore|hence|so)\b\s*[,:]?", re.IGNORECASE)
_NEGATED = re.compile(
    r"(?:\bnot|\bnever|n't|\bcannot|[不别別勿非](?:[应應][该該]?|能|可以?|[该該]|要|[会會])?)\s*$",
    re.IGNORECASE,
)

_NAMED = re.compile(r"\s*(?:option|choice|letter|answer|[选選][项項])?\s*", re.IGNORECASE)
_END = re.compile(r"\s*(?:$|\n)|\s*[.。!！]?\s*(?:$|\n)")
_FOLLOWS = re.compile(
    r"\s*(?:$|\n)|\s*[,;:!?。，；：！？、—–<}\\]|\.(?![A-Za-z]\.)|\s+-"
    r"|\s+(?:because|since|as|for|due|which|but|not|if|so|given|based|option|choice)\b"
    r"|\s+[\u3400-\u9fff]|[项項选選因不而是为為正符最]",
    re.IGNORECASE,
)
"""What may follow an answer's letter; anything else makes it the beginning of a word or name."""

_CODE_LANGUAGES = ("", "py", "python", "python3")
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>```+|~~~+)[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=mark)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_CODE_BEGINS = re.compile(r"^(?:def|class|async def|import|from|@)\b|^@", re.MULTILINE)
_MAIN = re.compile(r"^if __name__\b.*", re.MULTILINE | re.DOTALL)


def extract(text: str, form: str | None, stop: Sequence[str] = (), letters: Sequence[str] = ()) -> str:
    """The answer in a text.

    Args:
        text: what the model wrote.
        form: a name of `openba.recipes.evaluate.EXTRACTORS`, or a regular expression whose one group holds
            the answer (its last match counts), or None for the text as it is.
        stop: the text ends before the first of these, such as `Question:` where a model goes on to invent
            the next one.
        letters: the letters of the options, for form `letter`.

    Returns:
        The answer; empty if none could be read.
    """
    text = cut(text, stop)
    if form is None:
        return text
    if form == "letter":
        return option_letter(text, letters)
    if form in FORMS:
        return FORMS[form](text)
    matches = re.findall(form, text)
    return matches[-1].strip() if matches else ""


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for mark in stop:
        text = text.partition(mark)[0] if mark else text
    return text


def option_letter(text: str, letters: Sequence[str] = "ABCD") -> str:
    """The letter of the option that the text settles on.

    The last stated answer counts ("the answer is", 故选, a box). Without one it is the only option called
    right ("B is correct", C项正确); without that a text that is the letter, begins with it as an option
    does ("B. Paris"), or ends in a line that is the letter. Several letters ("A or B", 答案是AC), a denied
    one and a word's first letter ("the answer is Africa") are no answer.

    Args:
        text: what the model wrote.
        letters: upper-case letters of the options; empty means A to D.
    """
    options = "".join(letters or "ABCD")
    text = _plain(text)
    if boxed := _BOXED.findall(text):
        inside = boxed[-1].strip(" ().")
        return inside.upper() if len(inside) == 1 and inside.upper() in options else ""
    stated = _stated_letters(text, options)
    if stated:
        return stated[-1]
    called_right = set(_letters_called_right(text, options))
    if called_right:
        return called_right.pop() if len(called_right) == 1 else ""
    return _bare_letter(text, options)


def stated_answer(text: str) -> str:
    """What follows the last "the answer is", "Answer:" or 答案是, to the end of its sentence."""
    text = _plain(text)
    if boxed := _BOXED.findall(text):
        return boxed[-1].strip()
    answers = [_sentence(text[match.end() :]) for match in _STATEMENT.finditer(text)]
    return next((answer for answer in reversed(answers) if answer), "")


def short_answer(text: str) -> str:
    """The stated answer, or else the first line."""
    lines = [line for line in _plain(text).splitlines() if line.strip()]
    return stated_answer(text) or (_unwrapped(lines[0]) if lines else "")


def code(text: str) -> str:
    """The program in the text, without the prose around it.

    Of fenced blocks the first Python one with a definition, or else the first Python one. Without a fence,
    an indented text is the rest of a function and ends with its indentation; anything else is a program
    from its first definition, import or line, to the first paragraph of prose or `if __name__`.
    """
    text = text.replace("\r\n", "\n")
    fenced = list(_FENCE.finditer(text))
    if fenced:
        blocks = [block for block in fenced if block["language"].lower() in _CODE_LANGUAGES]
        programs = [textwrap.dedent(b["code"]) if b["indent"] else b["code"] for b in blocks]
        defining = (
            program for program in programs if re.search(r"^\s*(?:async )?def ", program, re.MULTILINE)
        )
        return _closed(next(defining, programs[0] if programs else ""))
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if first[:1].isspace():
        body = lines[lines.index(first) :]
        end = next((i for i, line in enumerate(body) if line.strip() and not line[0].isspace()), len(body))
        return _closed("\n".join(body[:end]))
    if _is_prose(first):
        begin = _CODE_BEGINS.search(text)
        if begin is None:
            return ""
        text = text[begin.start() :]
    text = _MAIN.sub("", text)
    paragraphs = (match.end() for match in re.finditer(r"\n[ \t]*\n(?=\S)", text))
    prose = (begin for begin in paragraphs if _is_prose(text[begin:].split("\n")[0]))
    return _closed(text[: next(prose, len(text))])


def _text(text: str) -> str:
    return text.strip()


FORMS: dict[str, Callable[..., str]] = {
    "text": _text,
    "letter": option_letter,
    "answer": stated_answer,
    "short_answer": short_answer,
    "code": code,
}
"""Function of each of `EXTRACTORS`. `text`: all of it, without the spaces around it."""


def _plain(text: str) -> str:
    """ASCII for full-width forms, and no marks of Markdown or formulas around words."""
    return re.sub(r"\*\*|__|[$`]", "", text.translate(_FULL_WIDTH))


def _stated_letters(text: str, options: str) -> list[str]:
    """Of each statement of an answer its letter, or an empty string where it names several."""
    read: list[tuple[int, str]] = []
    for head in (_STATEMENT, _CHOSEN, _CONCLUDED):
        for match in head.finditer(text):
            if _NEGATED.search(text[: match.start()]):
                continue
            letter = _letter_after(text[match.end() :], options, _END if head is _CONCLUDED else _FOLLOWS)
            if letter is not None:
                read.append((match.end(), letter))
    return [letter for _, letter in sorted(read)]


def _letter_after(tail: str, options: str, follows: re.Pattern[str]) -> str | None:
    """The letter that a text begins with; an empty string for several, None for none."""
    named = _NAMED.match(tail)
    tail = tail[named.end() :] if named else tail
    match = re.match(f"({_OPENING})([{options}{options.lower()}])({_CLOSING})", tail)
    if match is None:
        return None
    letter, rest = match[2], tail[match.end(2) :]
    bracketed = bool(match[1].strip())
    if letter.islower() and not bracketed and (letter == "a" or not _END.match(rest)):
        return None
    after = tail[match.end(3) :] if bracketed or match[3].strip() else rest
    several = (
        rf"{_CLOSING}(?:\s*(?:[和或与與及/&]|以及|and\b|or\b)\s*[(]?[{options}](?![A-Za-z])"
        rf"|\s*[、,，]\s*[(]?[{options}][)]?\s*(?:$|[、,，.。;；和或与與及&]|and\b|or\b))"
    )
    if re.match(several, rest):
        return ""
    if re.match(rf"[{options}]+(?![A-Za-z])", rest) and not bracketed:  # 答案是ABD
        return ""
    if re.match(r"[A-Za-z0-9'’+#]", rest):
        return None
    lettered = match[3].lstrip().startswith((")", "]"))  # "C) osmosis"
    return letter.upper() if bracketed or lettered or follows.match(after) else None


def _letters_called_right(text: str, options: str) -> list[str]:
    """Letters of the options that the text calls right."""
    english = (
        r"(?:^|[\n.,;:!?]\s*|\b(?i:option|choice|letter|answer|that|and|but|so|only|thus|hence|therefore)\s+)"
        rf"[(]?([{options}])[)]?\s+(?:is|seems|looks|appears|must be)\s+(?:to be\s+)?(?:the\s+)?(?:only\s+)?"
        rf"(?:correct|right|best|true)(?:\s+(?:answer|option|choice|one|statement))?(?=\s*(?:$|[\n.,;!]|because\b))"
    )
    chinese = (
        rf"(?:^|[^\u3400-\u9fffA-Za-z0-9]|[选選][项項]|只有|故|所以|因此|而|[则則]|知|[见見])([{options}])\s*"
        rf"(?:[选選][项項]|[项項])?\s*[是为為]?\s*[唯最]?一?(?:正[确確]|符合[题題]意|符合要求)"
        rf"(?:的?(?:答案|[选選][项項])|的)?(?=\s*(?:$|[\n。，,.;；!！]))"
    )
    read: list[str] = []
    for pattern in (english, chinese):
        for match in re.finditer(pattern, text):
            several = re.search(rf"[{options}]\s*(?:[、和或与與及]|and|or)\s*$", text[: match.start(1)])
            read += [match[1]] if not several else list(options)
    return read


def _bare_letter(text: str, options: str) -> str:
    """The letter of a text that is nothing else, or that begins or ends with it as a line of its own."""
    sole = re.fullmatch(rf"{_OPENING}([{options}{options.lower()}]){_CLOSING}[.。:]?\s*", text)
    if sole:
        return sole[1].upper()
    begin = re.match(
        rf"{_OPENING}([{options}])(?:[\"”)\]】]*\s*[.):、．](?![A-Za-z]\.)|[)\]】]|\s*[选選]?[项項]\s*$)"
        r"(?!\s*(?:is|was|are)\s+(?:wrong|incorrect|not|false))",
        text,
    )
    if begin:
        listed = {*re.findall(rf"(?<![A-Za-z0-9])([{options}])[.):、．]", text)}
        return begin[1] if len(listed) < 3 else ""
    last = re.search(rf"\n{_OPENING}([{options}]){_CLOSING}[.。]?\s*$", text)
    return last[1] if last else ""


def _sentence(text: str) -> str:
    """The first sentence of a text's first line that says something, without what encloses it."""
    line = next((line for line in text.splitlines() if line.strip(" \t:.。")), "")
    line = re.split(r"。|(?<!\b[A-Z])\.\s+(?=[A-Z])|,?\s+(?:because|since)\b", line, maxsplit=1)[0]
    return _unwrapped(line)


def _unwrapped(text: str) -> str:
    """Without the full stop at the end, and without quotes around all of it."""
    text = text.strip().strip("*_").strip()
    text = re.sub(r"(?<=.)[.。!！]+$|^[.。!！:]+$", "", text).strip()
    for opening, closing in ('""', "''", "“”", "‘’", "「」", "『』"):
        if len(text) > 2 and text[0] == opening and text[-1] == closing:
            text = text[1:-1]
    return re.sub(r"^[.。!！:]+$", "", text.strip())


def _is_prose(line: str) -> bool:
    """Whether a line at the margin is a sentence and no line of a program."""
    words = line.split()
    if not words or line[0].isspace() or line.startswith(("@", "#")):
        return False
    try:
        tree = ast.parse(line)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        is_sentence = re.search(r"[A-Za-z]\s+[A-Za-z]|[\u3400-\u9fff]", line) is not None
        keyword = re.match(r"(?:def|class|if|for|while|with|try|else|elif|except|async|match|return)\b", line)
        return is_sentence and keyword is None and not line.rstrip().endswith(("(", "[", "{", "\\"))
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Name) for s in tree.body)


def _closed(program: str) -> str:
    """The program with one line end, empty if there is nothing in it."""
    return f"{program.strip(chr(10)).rstrip()}\n" if program.strip() else ""
