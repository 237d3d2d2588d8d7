"""Convert answers that were scraped as HTML, such as ShareGPT's, back to Markdown."""

from __future__ import annotations

import re

from bs4 import Tag
from markdownify import ATX, MarkdownConverter

_BEGINS = re.compile(r"\s*<(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|span|strong|em)\b[^>]*>", re.IGNORECASE)
_ENDS = re.compile(r"</(?:div|p|ul|ol|pre|h[1-6]|table|blockquote|span|strong|em)>\s*$", re.IGNORECASE)
_PAGE_OF_CHATGPT = re.compile(r'<div[^>]* class="[^"]*\bmarkdown\b', re.IGNORECASE)
# Tags that rendered Markdown never has: an answer with them is code that was asked for.
_CODE_TAGS = re.compile(
    r"<(?:!doctype|html|head|body|script|style|form|input|label|nav|header|footer|link|meta)\b", re.IGNORECASE
)
_ASKS_FOR_HTML = re.compile(r"html|css|<\w+>|网页|網頁|标签|標籤", re.IGNORECASE)


class _Converter(MarkdownConverter):
    """Converter that fences code with its language and drops buttons ("Copy code")."""

    def convert_button(self, element: Tag, text: str, parent_tags: set[str]) -> str:
        """Drop a button."""
        return ""

    def convert_pre(self, element: Tag, text: str, parent_tags: set[str]) -> str:
        """Write a code block, without the label and buttons around its code."""
        code = element.find("code")
        # The language is in the class of the code element: language-python.
        classes = " ".join(code.get("class") or []) if code is not None else ""
        language = re.search(r"language-([\w+#-]+)", classes)
        content = (code if code is not None else element).get_text().strip("\n")
        return f"\n\n```{language[1] if language else ''}\n{content}\n```\n\n"


def is_html_answer(text: str, question: str) -> bool:
    """Return whether an answer is HTML of a rendered page, not HTML code that the question asked for."""
    if not (_BEGINS.match(text) and _ENDS.search(text)):
        return False
    if _PAGE_OF_CHATGPT.search(text):
        return True
    return not (_CODE_TAGS.search(text) or _ASKS_FOR_HTML.search(question))


def text_of_html(text: str) -> str:
    """Return the Markdown of which the HTML was rendered."""
    converter = _Converter(
        heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    markdown: str = converter.convert(text)
    return re.sub(r"\n{3,}", "\n\n", markdown).strip()
