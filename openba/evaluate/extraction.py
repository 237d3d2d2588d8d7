"""Extraction of answers from generated text, in Chinese and English.

Used for every benchmark with generated answers, natively and in lm-evaluation-harness, for one attempt or
many. The forms are names for `extract` in a benchmark's YAML; a regular expression with one group covers
anything else. An empty result means that no answer could be extracted.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Sequence

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_OPENING = r"[\s\"'“‘「『(\[【<]*"
_CLOSING = r"[\s\"'”’」』)\]】]*"

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
"""Introduction of a stated answer: "the answer is", "Answer:", 答案是, 【答案】."""

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
"""Text that may follow an answer's letter; before any other it is the beginning of a word or name."""

_CODE_LANGUAGES = ("", "py", "python", "python3")
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>```+|~~~+)[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=mark)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_CODE_BEGINS = re.compile(r"^(?:def|class|async def|import|from|@)\b|^@", re.MULTILINE)
_MAIN = re.compile(r"^if __name__\b.*", re.MULTILINE | re.DOTALL)


def extract(text: str, form: str | None, stop: Sequence[str] = (), letters: Sequence[str] = ()) -> str:
    """Return the answer in a text; empty if none could be extracted.

    Args:
        text: generated text.
        form: a name of `openba.recipes.evaluate.EXTRACTORS`, or a regular expression whose one group holds
            the answer (its last match counts), or None for the text as it is.
        stop: strings before the first of which the text ends, such as `Question:` where a model continues
            with another question.
        letters: letters of the options, for form `letter`.
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
    """Return the text before the first of the stop strings."""
    for stop_string in stop:
        text = text.partition(stop_string)[0] if stop_string else text
    return text


def option_letter(text: str, letters: Sequence[str] = "ABCD") -> str:
    """Return the letter of the option that the text decides for; empty if there is none.

    The last stated answer counts ("the answer is", 故选, a box). Without one it is the only option called
    right ("B is correct", C项正确); without that a text that is the letter, begins with it as an option
    does ("B. Paris"), or ends in a line that is the letter. Several letters ("A or B", 答案是AC), a denied
    one and a word's first letter ("the answer is Africa") are no answer.

    Args:
        text: generated text.
        letters: upper-case letters of the options; empty means A to D.
    """
    options = "".join(letters or "ABCD")
    text = _normalise(text)
    if boxed_texts := _BOXED.findall(text):
        boxed_text = boxed_texts[-1].strip(" ().")
        return boxed_text.upper() if len(boxed_text) == 1 and boxed_text.upper() in options else ""
    stated_letters = _stated_letters(text, options)
    if stated_letters:
        return stated_letters[-1]
    confirmed_letters = set(_confirmed_letters(text, options))
    if confirmed_letters:
        return confirmed_letters.pop() if len(confirmed_letters) == 1 else ""
    return _bare_letter(text, options)


def stated_answer(text: str) -> str:
    """Return the text after the last "the answer is", "Answer:" or 答案是, to the end of its sentence."""
    text = _normalise(text)
    if boxed_texts := _BOXED.findall(text):
        return boxed_texts[-1].strip()
    answers = [_first_sentence(text[match.end() :]) for match in _STATEMENT.finditer(text)]
    return next((answer for answer in reversed(answers) if answer), "")


def short_answer(text: str) -> str:
    """Return the stated answer, or else the first line."""
    lines = [line for line in _normalise(text).splitlines() if line.strip()]
    return stated_answer(text) or (_strip_quotes(lines[0]) if lines else "")


def code(text: str) -> str:
    """Return the program in the text, without the prose around it.

    Of fenced blocks the first Python one with a definition, or else the first Python one. Without a fence,
    an indented text is the rest of a function and ends with its indentation; anything else is a program
    from its first definition, import or line, to the first paragraph of prose or `if __name__`.
    """
    text = text.replace("\r\n", "\n")
    if fences := list(_FENCE.finditer(text)):
        return _end_with_newline(_fenced_program(fences))
    lines = text.split("\n")
    first_line = next((line for line in lines if line.strip()), "")
    if first_line[:1].isspace():
        body = lines[lines.index(first_line) :]
        end_line = next(
            (line_index for line_index, line in enumerate(body) if line.strip() and not line[0].isspace()),
            len(body),
        )
        return _end_with_newline("\n".join(body[:end_line]))
    if _is_prose(first_line):
        code_begin = _CODE_BEGINS.search(text)
        if code_begin is None:
            return ""
        text = text[code_begin.start() :]
    text = _MAIN.sub("", text)
    paragraph_begins = (match.end() for match in re.finditer(r"\n[ \t]*\n(?=\S)", text))
    prose_begins = (
        prose_start for prose_start in paragraph_begins if _is_prose(text[prose_start:].split("\n")[0])
    )
    return _end_with_newline(text[: next(prose_begins, len(text))])


def _fenced_program(fences: Sequence[re.Match[str]]) -> str:
    """Return the first Python block that defines a function, or else the first Python block."""
    programs = [
        textwrap.dedent(fence["code"]) if fence["indent"] else fence["code"]
        for fence in fences
        if fence["language"].lower() in _CODE_LANGUAGES
    ]
    for program in programs:
        if re.search(r"^\s*(?:async )?def ", program, re.MULTILINE):
            return program
    return programs[0] if programs else ""


def _text(text: str) -> str:
    return text.strip()


FORMS: dict[str, Callable[..., str]] = {
    "text": _text,
    "letter": option_letter,
    "answer": stated_answer,
    "short_answer": short_answer,
    "code": code,
}
"""Function of each of `EXTRACTORS`. `text`: the complete text without surrounding spaces."""


def _normalise(text: str) -> str:
    """Return the text with ASCII for full-width forms, and without marks of Markdown and formulas."""
    return re.sub(r"\*\*|__|[$`]", "", text.translate(_FULL_WIDTH))


def _stated_letters(text: str, options: str) -> list[str]:
    """Return the letter of each stated answer, or an empty string where it names several."""
    letters_by_position: list[tuple[int, str]] = []
    for introduction in (_STATEMENT, _CHOSEN, _CONCLUDED):
        for match in introduction.finditer(text):
            if _NEGATED.search(text[: match.start()]):
                continue
            # "so A ..." may begin any sentence, so after a conclusion the letter has to end it.
            allowed_after = _END if introduction is _CONCLUDED else _FOLLOWS
            letter = _letter_after(text[match.end() :], options, allowed_after)
            if letter is not None:
                letters_by_position.append((match.end(), letter))
    return [letter for _, letter in sorted(letters_by_position)]


def _letter_after(tail: str, options: str, allowed_after: re.Pattern[str]) -> str | None:
    """Return the letter that a text begins with; an empty string for several, None for none."""
    noun = _NAMED.match(tail)
    tail = tail[noun.end() :] if noun else tail
    match = re.match(f"({_OPENING})([{options}{options.lower()}])({_CLOSING})", tail)
    if match is None:
        return None
    letter = match[2]
    after_letter = tail[match.end(2) :]
    is_bracketed = bool(match[1].strip())
    # A small letter counts alone or in brackets only, and "a" is an article.
    if letter.islower() and not is_bracketed and (letter == "a" or not _END.match(after_letter)):
        return None
    several_letters = (
        rf"{_CLOSING}(?:\s*(?:[和或与與及/&]|以及|and\b|or\b)\s*[(]?[{options}](?![A-Za-z])"
        rf"|\s*[、,，]\s*[(]?[{options}][)]?\s*(?:$|[、,，.。;；和或与與及&]|and\b|or\b))"
    )
    if re.match(several_letters, after_letter):
        return ""
    if re.match(rf"[{options}]+(?![A-Za-z])", after_letter) and not is_bracketed:  # 答案是ABD
        return ""
    if re.match(r"[A-Za-z0-9'’+#]", after_letter):
        return None
    is_listed = match[3].lstrip().startswith((")", "]"))  # "C) osmosis"
    after_brackets = tail[match.end(3) :] if is_bracketed or match[3].strip() else after_letter
    is_answer = is_bracketed or is_listed or allowed_after.match(after_brackets)
    return letter.upper() if is_answer else None


def _confirmed_letters(text: str, options: str) -> list[str]:
    """Return the letters of the options that the text calls right."""
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
    confirmed: list[str] = []
    for pattern in (english, chinese):
        for match in re.finditer(pattern, text):
            # "A and B are correct" confirms no single option: all letters make the result ambiguous.
            has_several = re.search(rf"[{options}]\s*(?:[、和或与與及]|and|or)\s*$", text[: match.start(1)])
            confirmed += list(options) if has_several else [match[1]]
    return confirmed


def _bare_letter(text: str, options: str) -> str:
    """Return the letter of a text that is one letter, or begins or ends with one as an option does."""
    only_letter = re.fullmatch(rf"{_OPENING}([{options}{options.lower()}]){_CLOSING}[.。:]?\s*", text)
    if only_letter:
        return only_letter[1].upper()
    first_letter = re.match(
        rf"{_OPENING}([{options}])(?:[\"”)\]】]*\s*[.):、．](?![A-Za-z]\.)|[)\]】]|\s*[选選]?[项項]\s*$)"
        r"(?!\s*(?:is|was|are)\s+(?:wrong|incorrect|not|false))",
        text,
    )
    if first_letter:
        # A text with three options or more repeats the question.
        listed_letters = {*re.findall(rf"(?<![A-Za-z0-9])([{options}])[.):、．]", text)}
        return first_letter[1] if len(listed_letters) < 3 else ""
    last_letter = re.search(rf"\n{_OPENING}([{options}]){_CLOSING}[.。]?\s*$", text)
    return last_letter[1] if last_letter else ""


def _first_sentence(text: str) -> str:
    """Return the first sentence of a text's first line with content, without quotes around it."""
    line = next((line for line in text.splitlines() if line.strip(" \t:.。")), "")
    sentence = re.split(r"。|(?<!\b[A-Z])\.\s+(?=[A-Z])|,?\s+(?:because|since)\b", line, maxsplit=1)[0]
    return _strip_quotes(sentence)


def _strip_quotes(text: str) -> str:
    """Return the text without the full stop at its end, and without quotes around all of it."""
    text = text.strip().strip("*_").strip()
    text = re.sub(r"(?<=.)[.。!！]+$|^[.。!！:]+$", "", text).strip()
    for opening, closing in ('""', "''", "“”", "‘’", "「」", "『』"):
        if len(text) > 2 and text[0] == opening and text[-1] == closing:
            text = text[1:-1]
    return re.sub(r"^[.。!！:]+$", "", text.strip())


def _is_prose(line: str) -> bool:
    """Return whether a line without indentation is a sentence and no line of a program."""
    words = line.split()
    if not words or line[0].isspace() or line.startswith(("@", "#")):
        return False
    try:
        tree = ast.parse(line)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Also the first line of a statement of several lines, which does not parse alone.
        has_words = re.search(r"[A-Za-z]\s+[A-Za-z]|[\u3400-\u9fff]", line) is not None
        keyword = re.match(r"(?:def|class|if|for|while|with|try|else|elif|except|async|match|return)\b", line)
        return has_words and keyword is None and not line.rstrip().endswith(("(", "[", "{", "\\"))
    return all(
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Name) for statement in tree.body
    )


def _end_with_newline(program: str) -> str:
    """Return the program with one line end; an empty string for an empty program."""
    return f"{program.strip(chr(10)).rstrip()}\n" if program.strip() else ""
