"""Answers that a dump of web pages holds as HTML, such as ShareGPT's, become Markdown again."""

from __future__ import annotations

import re
from typing import Any

from markdownify import ATX, MarkdownConverter

_BEGINS = re.compile(r"\s*<(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|span|strong|em)\b[^>]*>", re.IGNORECASE)
_ENDS = re.compile(r"</(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|span|strong|em)>\s*$", re.IGNORECASE)
_PAGE_OF_CHATGPT = re.compile(r'<div[^>]* class="[^"]*\bmarkdown\b', re.IGNORECASE)
# Tags that rendered Markdown has not: an answer with them is code that was asked for.
_CODE_TAGS = re.compile(
    r"<(?:!doctype|html|head|body|script|style|form|input|label|nav|header|footer|link|meta)\b", re.IGNORECASE
)
_ASKS_FOR_HTML = re.compile(r"html|css|<\w+>|网页|網頁|标签|標籤", re.IGNORECASE)


class _Converter(MarkdownConverter):
    """Markdown of an answer: no escapes, code in fences with its language, no buttons ("Copy code")."""

    def convert_button(self, element: Any, text: str, parent_tags: Any) -> str:
        """Leave out a button."""
        return ""

    def convert_pre(self, element: Any, text: str, parent_tags: Any) -> str:
        """Write a code block; what stands beside the code (its language, a button) is no part of it."""
        code = element.find("code")
        classes = " ".join(code.get("class") or []) if code is not None else ""
        language = re.search(r"language-([\w+#-]+)", classes)
        content = (code if code is not None else element).get_text().strip("\n")
        return f"\n\n```{language[1] if language else ''}\n{content}\n```\n\n"


def is_html_answer(text: str, question: str) -> bool:
    """Whether an answer is a rendered page's HTML, not HTML code that the question asked for."""
    if not (_BEGINS.match(text) and _ENDS.search(text)):
        return False
    if _PAGE_OF_CHATGPT.search(text):
        return True
    return not (_CODE_TAGS.search(text) or _ASKS_FOR_HTML.search(question))


def text_of_html(text: str) -> str:
    """Return the Markdown that was rendered as this HTML."""
    converter = _Converter(
        heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    markdown: str = converter.convert(text)
    return re.sub(r"\n{3,}", "\n\n", markdown).strip()
