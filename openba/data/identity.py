"""Whether an answer says which model gives it: the identity filter of the Chat expert (paper section 6.1).

The paper drops "content containing model identity information, e.g., 'I am ChatGPT'". Counted as such is what
the speaker says of itself: that it is a model, a program or an assistant, its name as a product, who made it,
its training data or its knowledge cutoff. Talk about models, and people who share a model's name ("Claude
Monet"), is not. Precision and recall are measured on `tests/data/labelled/identity_turns.jsonl`
(`python -m benchmarks quality`). Chinese is recognised in simplified and traditional characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from openba.data.simple_talk import HAN


def states_identity(text: str, model_names: Sequence[str] = ()) -> bool:
    """Whether the speaker says of itself that it is a model, which one, or who made or trained it.

    Args:
        text: one answer.
        model_names: names of the models that wrote the answers of this data set. An answer that mentions one,
            in its capitals, counts too: such models also speak of themselves in the third person.
    """
    if any(re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text) for name in model_names):
        return True
    text = _SPACE_AT_HAN.sub("", text)
    if any(pattern.search(text) for pattern in _STATEMENTS):
        return True
    return any(_is_of_the_speaker(text, match) for match in _AS_A_MODEL.finditer(text))


_SPACE_AT_HAN = re.compile(f"(?<=[{HAN}]) +| +(?=[{HAN}])")


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


# English ---------------------------------------------------------------------------------------------

# "an AI researcher" is a person; after "AI" anything else is a machine: "an AI writing assistant".
_PEOPLE = _any(
    "researcher|engineer|scientist|developer|programmer|expert|specialist|enthusiast|student|professor|teacher",
    "ethicist|lead|leader|manager|artist|consultant|professional|practitioner|analyst|architect|founder|investor",
    "entrepreneur|advocate|skeptic|lecturer|intern|editor|journalist|lawyer|author|user|fan|beginner|trainer",
    "instructor|designer|lover|hobbyist|optimist|pessimist|person|nerd|graduate|major|doctor|physician|critic",
    "company|startup|start-up|lab|laboratory|team|firm|department|community|officer|director|executive|and|or",
)
_MACHINE = _any(
    r"AI-powered (?:\w+ ){0,2}\w+",
    rf"A\.?I\.?(?:[ -](?!{_PEOPLE}\b)[\w-]+){{0,3}}?",
    r"artificial intelligence(?: (?:language )?(?:model|assistant|chat ?bot|system|program))?",
    r"(?:language|AI|machine[ -]learning|deep[ -]learning|text[ -]generation|multimodal) model",
    r"LLM|(?:chat|ro)? ?bot|chat ?bot|neural network|(?:computer |software )?program|computer system|machine",
    r"(?:language )?algorithm|(?:(?:piece|bit) of )?(?:software|code)|(?:set|collection) of algorithms",
    r"(?:virtual|digital|voice|text-based|automated|automatic) (?:assistant|system|agent)"
    r"(?: (?:of|for) \w+ \w+)?",
    r"conversational agent",
    r"(?:assistant|model|system)(?= (?:trained|created|developed|made|built|designed) by )",
)
# "a machine learning engineer" and "an AI researcher" are people: the noun must end the noun phrase.
_PHRASE_ENDS = (
    r"(?=\s*(?:[,.;:!?()\[\]–—\"]|$|\n)|\s+(?:and|but|so|that|which|who|without|with|by|from|to|not|or|like|in|on"
    r"|since|because|for|here|there|i|i'm|my|it|based|called|named|known|trained|created|developed|designed"
    r"|made|built|powered|programmed|fine-tuned|intended|capable|running|myself|does|do|have|has|am|can|cannot)\b)"
)
# Up to four words before the noun, of which none begins another phrase, as in "a fan of robots".
_MODIFIERS = (
    r"(?:(?!(?:not|no|never|of|who|that|which|about|in|for|with|to|from|at|on|by|as|learning|studying|using|than|the)\b)"
    r"[\w.'-]+ ){0,4}?"
)
_I_AM = (
    r"(?<!if )\bI(?: am|['’]?m| was|(?: am|['’]m), after all,| am what \w+ call"
    r"| (?:only |just |merely )?exist(?: only)? as)"
    r" (?:(?:just|only|merely|simply|actually|really|afraid|still|also|indeed) )*"
)
_NAMED = rf"(?:{_I_AM}|\bmy name(?: is|['’]s) )[\w.-]+(?: [\w.-]+)?"
_I_WAS = r"\bI(?: am|['’]m| was| have been|['’]ve been) (?:\w+ly )?"
_MAKERS = _any(
    "OpenAI|Anthropic|Google|DeepMind|Microsoft|(?:the )?Meta|Facebook|Baidu|Alibaba|Tencent|Huawei|iFlytek",
    "Fudan|Tsinghua|Zhipu|LMSYS|Stanford|Hugging ?Face|Stability|Moonshot|DeepSeek|Mistral|xAI|Amazon|Apple",
    "ByteDance|MiniMax|Cohere|NVIDIA|Inflection",
    "(?:a team of )?(?:AI )?(?:researchers|engineers|developers|scientists)",
)
_MODELS_ONLY = _any(
    r"ChatGPT|Chat GPT|GPT-?[2345][\w.]*|Open ?Assistant|ChatGLM[\w-]*|Qwen[\w.-]*|Tongyi Qianwen",
    r"ERNIE(?: Bot)?|LLaMA[\w-]*|InternLM|Baichuan[\w-]*|DeepSeek[\w-]*|Cortana|Siri|Alexa|Doubao|Le Chat",
)
# Names that people, animals or things bear too: only in these capitals, and not before a family name.
_SHARED_NAMES = _any(
    "(?-i:Claude|Bard|Bing|Gemini|Copilot|MOSS|Vicuna|Alpaca|Koala|Falcon|BELLE|Assistant|Kimi)",
    "(?-i:Grok|Mistral|Pi)",
)
_SHARED_NAME_ENDS = (
    r"(?=\s*(?:[.,!?;:(–—]|$|\n)| and I(?: am|['’]m| was)\b| (?:an?|made|built|created|by|from)\b)"
)
_MADE = "(?:built|made|created|trained|developed|designed|released|fine-tuned|programmed)"
_NAME_ENDS = r"(?!['’]s\b| (?-i:[A-Z][a-z])|-(?-i:[A-Z]))(?!\w)"

_ENGLISH = (
    # I am just a large language model; I'm your AI assistant
    rf"{_I_AM}(?:(?:an?|the|your|one of) )?{_MODIFIERS}{_MACHINE}{_PHRASE_ENDS}",
    # I am not a licensed therapist but an AI
    rf"\bnot an? [\w ]+ but an? {_MODIFIERS}{_MACHINE}{_PHRASE_ENDS}",
    r"\bI(?: am|['’]m) not (?:an? )?(?:real |actual |living )?(?:human(?: being)?|real person)\b",
    r"\bI (?:do not|don['’]t) have a physical (?:body|form)\b",
    # I am ChatGPT; my name is Bard
    rf"(?:\bI(?: am|['’]m)(?: not)?|\bmy name(?: is|['’]s)|\bcall me|\bI go by|\bthis is|\bI,"
    rf"|\byou(?: are|['’]re) (?:talking|speaking|chatting) (?:to|with)) {_MODELS_ONLY}{_NAME_ENDS}",
    rf"(?:\bI(?: am|['’]m)|\bmy name(?: is|['’]s)|\bcall me|\bI go by|\bI,) {_SHARED_NAMES}{_NAME_ENDS}"
    rf"{_SHARED_NAME_ENDS}",
    # I'm Ada, your personal AI; I am Ada, built by xAI; I'm Google's chatbot; I'm your AI guide
    rf"{_NAMED}, (?:an?|the|your) {_MODIFIERS}{_MACHINE}{_PHRASE_ENDS}",
    rf"{_NAMED},? {_MADE} by {_MAKERS}",
    rf"{_I_AM}{_MAKERS}['’]s {_MODIFIERS}(?:assistant|{_MACHINE}){_PHRASE_ENDS}",
    r"\b(?:as|I(?: am|['’]m)) your (?:\w+ )?AI \w+",
    rf"{_MODELS_ONLY} here[.!,]",
    # I was trained by OpenAI; I was trained on a large corpus; I am programmed to help
    rf"{_I_WAS}(?:trained|created|developed|made|built|designed|programmed|fine-tuned|released|launched)"
    rf"(?: and \w+)? (?:by|at) {_MAKERS}",
    rf"{_I_WAS}(?:trained on|(?:developed|programmed|fine-tuned) by)\b",
    r"\bI(?: was| have been|['’]ve been) (?:last|most recently|only) (?:trained|updated)\b",
    rf"\b(?:{_MAKERS}|{_MODELS_ONLY}) (?:\w+ )?{_MADE} me\b",
    rf"(?:{_I_WAS}(?:powered by|based on|built on|running on)|\bI run on) (?:an?|the)? ?{_MODIFIERS}"
    rf"(?:{_MODELS_ONLY}|{_MACHINE})\b",
    rf"{_I_WAS}(?:programmed|designed) (?:and \w+ )?to (?:assist|help|provide|answer|give|generate|be|respond"
    r"|understand|follow|process|engage|offer|support)\b",
    # my training data; my knowledge cutoff; my developers
    r"\bmy (?:training data|knowledge (?:cut-? ?off|base|was|ends|stops)|(?:training |knowledge )?cut-? ?off"
    r"|(?:last|latest|most recent) (?:knowledge|training) (?:update|cut-? ?off)"
    r"|developers|creators|programmers|programming (?:does|do|allows|is|prevents|limits|won))\b",
    r"\bas of my (?:last|latest|most recent) (?:\w+ )?update\b",
    r"\bmy training (?:only |just )?(?:goes|ends|ended|stops|stopped|extends|includes|does|covers)\b",
    r"\bmy knowledge\b[^.!?\n]{0,40}\b20\d\d\b",
    r"\bmy (?:answers|responses|replies)\b[^.!?\n]{0,40}"
    rf"\b(?:neural network|model|algorithm|training|{_MAKERS})\b",
    r"\bagainst my (?:programming|guidelines)\b",
    # language models like me
    rf"\b{_MACHINE}s? (?:like|such as) (?:me|myself)\b",
    # like other language models, I; I am your guide, an AI that answers
    r"\b(?:un)?like (?:all|any|many|most|other) (?:\w+ ){0,2}"
    r"(?:language models?|AIs?|AI \w+|chat ?bots?),? I\b",
    rf"{_I_AM}[^.!?;\n]{{1,40}}, an AI{_PHRASE_ENDS}",
    r"\bOpenAI['’]?s? (?:\w+ ){0,2}(?:policy|policies|guidelines)",
)

# Chinese ---------------------------------------------------------------------------------------------

_MACHINE_ZH = _any(
    "(?:人工智能|人工智慧|智能|智慧|AI)?(?:大?型?[语語]言|大|[对對][话話]|自然[语語]言[处處]理|[认認]知大)模型",
    "(?:[机機]器[学學][习習]|深度[学學][习習]|文本|[图圖]像|多模[态態]|[预預][训訓][练練]|生成式?)模型|神[经經][网網][络絡路]",
    "(?:人工智能|人工智慧|智能|智慧|AI)[\u4e00-\u9fff]{0,6}(?:助手|助理|[机機]器人|模型|系[统統]|工具|[伙夥]伴)",
    "(?:人工智能|人工智慧|AI)(?:模型|助手|助理|[机機]器人|程序|程式|系[统統])?",
    "(?:智能|智慧|[虚虛][拟擬]|[语語]音|智能[语語]音)(?:助手|助理)",
    "(?:智能|智慧|AI)客服|客服(?:助手|助理|[机機]器人)|程序|程式[碼]?|代[码碼]|算法|演算法|[软軟][件體]",
    "聊天[机機]器人|[机機]器人?|智能?(?:[对對][话話]|[问問]答)系[统統]|(?:[对對][话話]|[问問]答)系[统統]",
    "基[于於][^，。]{0,10}系[统統]|(?:[计計]算[机機]|[电電][脑腦])(?:程序|程式)?",
)
# 机器人工程师 and AI公司 are no machines: the noun must end the phrase.
_PHRASE_ENDS_ZH = (
    r"(?=\s*(?:[，,。．.！!？?；;：:、（(）)\n]|$)"
    "|我|[没沒][有法]|[无無]法|不[能会會具需]|可以|而已|程序|程式)"
)
_COUNTED_ZH = "(?:[一1]?[个個名款种種台臺位只段套])?"
_ADVERBS_ZH = _any(
    "[只仅僅不][过過是]?|仍然?|依然|[还還]|本身|其[实實]|[实實][际際]上|就|也|都|可|[毕畢]竟|[确確][实實]|真的|本[质質]上",
    "[终終]究|目前|[现現]在|[当當]然|[严嚴]格[来來][说說]",
)
_WITHIN_ZH = r"[^，,。．！!？?；;\n]{0,24}?"
_NAMES_ZH = _any(
    r"ChatGPT|GPT-?[2345][\w.]*|文心一言|通[义義]千[问問]|[讯訊][飞飛]星火(?:[认認]知)?|豆包|Kimi|智[谱譜]清言",
    r"ChatGLM[\w-]*|百川(?:大模型)?|[盘盤]古(?:大模型)?|混元|MOSS|小[爱愛]同[学學]|小冰|小度|天[猫貓]精[灵靈]|必[应應]",
    r"Siri|Claude|Bard|Gemini|Copilot|Bing|BELLE|DeepSeek|ERNIE|Qwen[\w.-]*|Vicuna|Alpaca|LLaMA",
)
_MAKERS_ZH = _any(
    "OpenAI|Anthropic|谷歌|Google|微[软軟]|Microsoft|Meta|百度|阿里|腾讯|騰訊|[华華][为為]|科大[讯訊][飞飛]",
    "复旦|復旦|清[华華]|智[谱譜]|月之暗面|字[节節]跳[动動]|深度求索|MiniMax|昆[仑侖][万萬][维維]|小米",
)
_MADE_ZH = _any("[开開][发發]|研[发發]|[训訓][练練]|打造|推出|[创創]建|[驱驅][动動]")

_CHINESE = (
    # 我只是一个由 OpenAI 训练的语言模型
    rf"(?<!如果)(?<!假如)(?<!假[设設])(?<!要是)(?<!若)(?:我|本人){_ADVERBS_ZH}*是(?![说說指想在从從被用因])"
    rf"{_COUNTED_ZH}(?:{_WITHIN_ZH}的?)??{_MACHINE_ZH}{_PHRASE_ENDS_ZH}",
    # 我是您的智能客服小蜜；我叫小艺，是一款智能助手；我并不是人类，而是一个语言模型；我背后的模型是
    rf"我是(?![说說指想在从從被用因]){_WITHIN_ZH}(?:智能客服|(?:AI|[智语語]能?音?|[虚虛][拟擬])(?:助手|助理))"
    r"[A-Za-z\u4e00-\u9fff]{1,6}(?=\s*(?:[，,。．.！!？?；;：:（(\n]|$))",
    rf"我(?:的名字)?[叫是][\w]{{1,10}}[，,]\s*(?:我?是)?{_COUNTED_ZH}(?:{_WITHIN_ZH}的)?{_MACHINE_ZH}{_PHRASE_ENDS_ZH}",
    rf"我[并並]?不是[^。！？!?\n]{{1,20}}而是{_COUNTED_ZH}(?:{_WITHIN_ZH}的)?{_MACHINE_ZH}{_PHRASE_ENDS_ZH}",
    "我(?:背[后後]|所?(?:使用|[采採]用|[运運]行))的(?:大|[语語]言|AI)*模型",
    rf"我是?基[于於]{_WITHIN_ZH}(?:模型|{_NAMES_ZH})",
    # 我是文心一言；我叫小度；你可以叫我豆包
    rf"(?:(?<!他)我不?是|我叫|我的(?:中文)?名字?[是叫]|叫我|[这這][里裡]是)\s*{_NAMES_ZH}(?![\w]|的|[们們])",
    # 我是百度的文心一言；我是 OpenAI 的 GPT-4 模型
    rf"我是{_MAKERS_ZH}{_WITHIN_ZH}的{_WITHIN_ZH}(?:{_NAMES_ZH}|{_MACHINE_ZH}{_PHRASE_ENDS_ZH})",
    # 我是百度开发的人工智能模型；我由清华大学训练的模型
    rf"我是{_WITHIN_ZH}{_MAKERS_ZH}{_WITHIN_ZH}{_MADE_ZH}的{_WITHIN_ZH}(?:模型|助手|助理|AI|人工智[能慧])",
    rf"我[是，,]?\s*(?:由|被){_WITHIN_ZH}{_MADE_ZH}的?{_WITHIN_ZH}(?:模型|助手|助理|AI|人工智[能慧]|系[统統])",
    rf"我是?由{_WITHIN_ZH}{_MADE_ZH}(?=[，,。])",
    rf"我{_WITHIN_ZH}由{_MAKERS_ZH}{_WITHIN_ZH}(?:{_MADE_ZH}|[发發]布)",
    rf"我的(?:回答|回[复覆應应]|答案|知[识識]){_WITHIN_ZH}"
    rf"(?:模型|神[经經][网網][络絡路]|[训訓][练練]|20\d\d|{_MAKERS_ZH})",
    rf"正?在[和跟同與与]{_NAMES_ZH}(?:[对對][话話]|聊天|交[谈談流])",
    # 我被设计用来回答问题
    r"我是?被(?:[设設][计計]|[编編]程|[训訓][练練])(?:[来來]|用[来來]|[为為]|[来來]用)(?:[来來])?"
    r"(?:[帮幫]助|[协協]助|回答|提供|遵|生成)",
    r"我不是(?:一?[个個名])?(?:真正的?|真[实實]的?)?(?:人[类類](?![学學])|真人)",
    # 我的训练数据；我的知识截止到 2021 年；我的开发者
    r"我的(?:[训訓][练練](?:[数數][据據]|[资資]料|[语語]料)|知[识識](?:[截库庫]|更新)|[创創]造者|程序[设設]定|程式設定"
    r"|[开開][发發](?:者|[团團][队隊]|人[员員]))",
    # 像我这样的语言模型；我作为 AI 助手
    rf"我[这這][样樣种種][样樣]?的{_WITHIN_ZH}{_MACHINE_ZH}"
    "(?!工程|[开開][发發]|[爱愛]好|[专專]家|公司|[设設][计計]|研究)",
    "[和像同跟与與]其他的?(?:大型?|[语語]言|AI|人工智[能慧])+模型一[样樣][，,]?我",
    rf"我[作做][为為]{_COUNTED_ZH}(?:AI|人工智[能慧])?(?:[语語]言模型|模型|助手|助理)",
    r"OpenAI\s*的?(?:使用|[内內]容)?(?:政策|[规規]定|[准準][则則])",
)

_STATEMENTS = tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in (*_ENGLISH, *_CHINESE))

# "As an AI language model": of whom it is said, the rest of the sentence decides -----------------------

_AS_A_MODEL = re.compile(
    _any(
        rf"\b(?:as|being) an? {_MODIFIERS}{_MACHINE}{_PHRASE_ENDS}",
        rf"\b(?:I|me), an? {_MODIFIERS}{_MACHINE}{_PHRASE_ENDS}",
        rf"[作做身][为為]{_COUNTED_ZH}(?:{_WITHIN_ZH}的)?(?:{_WITHIN_ZH})?{_MACHINE_ZH}{_PHRASE_ENDS_ZH}",
    ),
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")
_FIRST_PERSON = re.compile(r"\b(?:I|my|me|myself)\b|我|本人", re.IGNORECASE)
_SUBJECT_LEFT_OUT = re.compile(
    r"^[，,]\s*(?:[无無]法|不能|不[会會]|[没沒]有|很抱歉|很?高[兴興]|只能|可以[为為][您你])"
)
_DUMMY_SUBJECT = re.compile(r"^,\s*(?:it(?:['’]s| is| would)|there (?:is|are))\b", re.IGNORECASE)
_CLAUSE_BEGINS = re.compile(
    r"(?:^|[,;:(，、：；]|\b(?:but|because|since|that|and|so|sorry|however|speaking|though|although|while)|我|本人|但|不[过過]|然而|可是|所以|[毕畢]竟|因[为為]|由[于於])\s*$",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\bI\s+(?:do\s*n['’o]t|do not|can\s*not|can['’]t|am (?:not|unable)|have no|lack)\b", re.IGNORECASE
)


def _is_of_the_speaker(text: str, match: re.Match[str]) -> bool:
    """Whether "as an AI assistant" describes the speaker and nobody else in the sentence.

    "I see Siri as an AI assistant" and "As an AI assistant, Siri sets timers" describe another.
    """
    if match.group().lower().startswith(("i,", "me,")):
        return True
    begin = max((end.end() for end in _SENTENCE_END.finditer(text, 0, match.start())), default=0)
    end = _SENTENCE_END.search(text, match.end())
    before = text[begin : match.start()]
    after = text[match.end() : end.start() if end else len(text)]
    if not (_CLAUSE_BEGINS.search(before) or _DENIES.search(before)):
        return False
    if _FIRST_PERSON.search(before + " " + after) or _SUBJECT_LEFT_OUT.search(after):
        return True
    return not before.strip() and bool(_DUMMY_SUBJECT.search(after))
