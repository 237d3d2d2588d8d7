"""Length of a conversation's content, by which the Chat expert drops overly simple talk (paper section 6.1).

The paper filters "overly simple conversations based on their length" and gives no figure. The rule here is
measured on `tests/data/labelled/simple_talks.jsonl` (`python -m benchmarks quality`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS_PER_HAN_CHARACTER = 0.6
"""In FLORES-200 dev 34,189 Han characters stand for 20,986 English words."""

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Han characters, for use inside the brackets of a regular expression."""

_HAN_CHARACTER = re.compile(f"[{HAN}]")
_WORD = re.compile(rf"[^\W_{HAN}]+(?:['’.,-][^\W_{HAN}]+)*")

_ENGLISH = (
    # greetings and goodbyes
    r"hi+|hey|hello|there|again|welcome(?: back)?|good (?:morning|afternoon|evening|night|day)",
    r"bye+|goodbye|sleep well|see you(?: (?:later|soon|tomorrow))?|take care|long time no see",
    r"have a (?:nice|great|good|lovely) (?:day|evening|weekend|one)|to you|too|nice to meet you",
    r"happy (?:birthday|new year|holidays)|merry christmas",
    # thanks and apologies
    r"(?:thanks?|thank you|thx)(?: (?:a lot|so much|very much|again))?(?: for (?:your|the) help)?",
    r"(?:you(?:['’]?re| are) )?(?:(?:very|most) )?welcome|my pleasure|any ?time|not at all",
    r"sorry|please|no (?:problem|worries)(?: at all)?",
    # how are you
    r"(?:and )?how(?:['’]s| are| is| about) (?:you|it|things|everything)(?: (?:doing|going))?(?: today)?",
    r"(?:and )?what['’]?s up|not much|(?:and )?you|pretty|all good",
    r"i ?(?:['’]?m| am) (?:(?:doing|very|pretty) )?(?:fine|good|well|great|here)",
    # assent and exclamations
    r"okay|ok|yes|yeah|yep|no|nope|sure|great|cool|nice|wow|awesome|perfect|good|fine|lol|ha(?:ha)+|alright",
    r"of course|understood|i (?:see|understand)|got it|that is all",
    # offers of help
    r"happy to help|glad (?:i could|to) help|let me know if (?:you need anything else|i can help)",
    r"(?:is there anything else|how (?:can|may)|what can) i (?:can )?(?:help|assist|do)(?: you)?"
    r"(?: (?:with|for you))?(?: today)?",
    r"(?:can|could) you help me|(?:could you )?say that again|(?:are you|anyone|is anyone|is anybody) there",
)
"""Pleasantries: alternatives between word boundaries."""

_CHINESE = (
    # greetings and goodbyes
    r"[你您妳]好[吗嗎]?呀?|嗨|喂|(?:早上|上午|中午|下午|晚上)好|晚安|早安|好[梦夢]|好久不[见見]|拜拜|再[见見]|下次再聊",
    r"(?:新年|生日|[圣聖][诞誕]|[节節]日|[周週]末)[快愉][乐樂快悦悅]?|[万萬]事如意",
    r"祝[你您妳](?:生活)?(?:愉快|有美好的一天)|生活愉快|愉快|(?:我也?)?很高[兴興](?:[认認][识識]|能)?[你您妳]?",
    # thanks and apologies
    r"(?:太|非常|十分)?[感谢謝]{1,2}(?:了|[你您妳])?(?:的?(?:[帮幫]助|[关關]心))?|不用?客[气氣]|不用?[谢謝]",
    r"(?:不)?辛苦[了啦]?|[应應][该該]的|[对對]不起|抱歉|不好意思|[没沒][关關][系係]|[为為][您你妳]服[务務]",
    # how are you
    r"(?:最近|今天|[过過]得|都)*怎[么麼][样樣]|我?(?:也|[还還])?(?:挺|很|都|不)[好错錯]的?|[你您妳]呢|太好了|[那就]+好",
    # assent and exclamations
    r"好[的吧啊呀]|是[吗嗎的]|[对對]的?|(?:[当當]然)?可以的?|明白了?|知道了|了解了?|哈+|嘿+|嗯+|呵+",
    r"[没沒](?:什[么麼])?(?:[问問][题題]|事[了儿兒]?|[干幹][嘛吗嗎])",
    # offers of help
    r"(?:我|[你您妳])?在[吗嗎的]?|[请請][说說]|[请請]再[说說]一遍|[随隨][时時]找我",
    r"[请請]?[问問]?[你您妳]?[还還]?(?:有|需要)什[么麼](?:可以|需要)?(?:[帮幫](?:助|到|忙))?[你您妳]?的?[吗嗎]?",
    r"(?:可以|能)?[帮幫](?:助|到|忙|我)?[你您妳我]?(?:一下)?[的了吗嗎]?",
    r"如果[还還]有[问問][题題][请請]?(?:[随隨][时時])?告[诉訴]我",
)
"""The same in Chinese, simplified and traditional."""

_QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|「([^」\n]+)」")
"""What is quoted is talked about, not said: `Translate "thank you" into French.`"""

_PLEASANTRY = re.compile(rf"\b(?:{'|'.join(_ENGLISH)})\b|{'|'.join(_CHINESE)}", re.IGNORECASE)


def content_words(texts: Iterable[str]) -> float:
    """Return the length of the texts in words, greetings, thanks and other pleasantries left out.

    A Han character counts as `WORDS_PER_HAN_CHARACTER` words, so that one limit serves both languages.
    """
    words = 0.0
    for text in texts:
        quoted = ["".join(match.groups(default="")) for match in _QUOTED.finditer(text)]
        content = " ".join([_PLEASANTRY.sub(" ", _QUOTED.sub(" ", text)), *quoted])
        words += len(_WORD.findall(content)) + WORDS_PER_HAN_CHARACTER * len(_HAN_CHARACTER.findall(content))
    return words
