"""Patterns of phone numbers, e-mail addresses and web links in folded text (`folding.fold`).

Phones: Chinese mobile, landline and service numbers with or without +86, North American and international
forms, and bare local numbers after a word such as 电话; not dates, amounts, identity cards and ISBNs, nor 110
and 95588. Links: with a scheme or www, hosts of well-known top-level domains, and short forms such as
bit.ly/x; not stock symbols and names in code.
"""

from __future__ import annotations

import re

# Folding leaves the full-width marks ，；！？：（） as they are. A pattern must match with the ASCII form of
# such a mark exactly where it matches with the full-width one, since a tokenizer may turn one into the other:
# both forms stand in every set below, and what comes first in a link's tail is neither.

# ASCII only, so that a link glued to Chinese text ends where the Chinese begins. A closing bracket
# belongs to the link only with its opening one, a final stop or comma to the sentence.
_URL = r"(?:[!#-&*-;=?-Z\[\]_a-z~]|\([!#-&*-;=?-Z\[\]_a-z~]*\))*(?<=[A-Za-z0-9/#=&_~%+$)-])"
_HAN = "\u3400-\u9fff"
_CHINESE_DOMAINS = (
    "中国|中國|公司|网络|網絡|網路|香港|台湾|台灣|澳门|澳門|新加坡|公益|政务|机构|组织机构|中文网|在线|中信|"
    "网址|网店|网站|商城|商店|商标|集团|手机|移动|我爱你|游戏|企业|信息|娱乐|广东|佛山|时尚|餐厅|招聘|购物|健康|世界"
)
_CHINESE_HOST = (
    rf"(?:[A-Za-z0-9-]+\.)*(?:[{_HAN}][{_HAN}A-Za-z0-9-]{{0,30}}\.)(?:[{_HAN}A-Za-z0-9-]{{1,31}}\.)*?"
    rf"(?:{_CHINESE_DOMAINS}|(?:com|net|org|cn|xn--[a-z0-9-]+)(?![A-Za-z0-9-]))"
)
_TAIL = rf"(?::[0-9]{{2,5}})?(?:[/?]{_URL})?"
_BEFORE_HOST = r"(?<![A-Za-z0-9@_-])(?<![A-Za-z0-9_-]\.)"  # an ellipsis may stand before, a label not
_LABELS = r"(?:[A-Za-z0-9-]+\.)+"
_SECOND_LEVEL = r"(?:com|net|org|edu|gov|ac|co)\.[a-z]{2}"
# Names before .net, .info, .org and .tv in code; a host is called so only with www or a scheme.
_IN_CODE = (
    "self|this|that|cls|super|base|system|sys|asp|ado|vb|torch|nn|tf|keras|np|model|models|module|agent|policy|"
    "critic|actor|generator|discriminator|encoder|decoder|response|resp|res|request|req|reply|result|results|"
    "ret|rsp|logger|logging|log|console|page|user|item|data|obj|object|entity|node|event|ctx|context|config|"
    "conf|cfg|args|opt|opts|options|params|props|state|row|record|df|pd|os|java|javax|microsoft|std|app|player|"
    "err|error|ex|exc|exception|msg|message|file|image|video|device|client|server|session|conn|socket|package"
)
# Domains that count only with a path. Those that are English words, such as .to, are in the next line.
_SHORT_DOMAINS = (
    "ly|gl|gd|gy|io|co|me|gg|fm|im|la|cc|tv|us|uk|de|jp|fr|eu|ru|ca|au|nl|sg|kr|xyz|vip|club|online|mobi|biz|"
    "asia|ltd|top|site|shop|app|dev|ai|mp|ws|pw|cx"
)
_SHORTENERS = r"(?:amzn\.to|youtu\.be|s\.id|spoti\.fi|nyti\.ms|redd\.it|db\.tt)"
_LINK = rf"""
    (?:https?|ftps?)[:：]?//(?:{_CHINESE_HOST}{_TAIL}|{_URL})
  | (?<![A-Za-z0-9])www\.(?:{_CHINESE_HOST}{_TAIL}|(?=[A-Za-z0-9]){_URL})
  | {_BEFORE_HOST}{_LABELS}(?:{_SECOND_LEVEL}|com|cn|org|edu|gov|xn--[a-z0-9-]+)(?![A-Za-z0-9-]){_TAIL}
  # Words of English and of code, and stock symbols such as 00700.HK.
  | {_BEFORE_HOST}(?!(?:{_IN_CODE})\.(?:[a-z]+(?![A-Za-z0-9/.-])))(?![0-9]+\.(?:hk|tw)(?![A-Za-z0-9/.-]))
    {_LABELS}(?-i:net|NET|info|INFO|tv|TV|hk|HK|tw|TW)
    (?![A-Za-z0-9-])(?!\.[A-Za-z])(?![ ]?(?:[+*-]?=|\[))(?!\((?:[A-Za-z0-9_"'\[{{]|\))){_TAIL}
  | {_BEFORE_HOST}(?!(?:{_IN_CODE})\.)(?:{_LABELS}(?:{_SHORT_DOMAINS})|{_SHORTENERS})
    /(?=[A-Za-z0-9]){_URL}
"""
_EMAIL = (
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@"
    rf"(?:(?:[A-Za-z0-9-]+\.)+[A-Za-z]{{2,}}|{_CHINESE_HOST})"
)

_D = "[0-9]"
_BEFORE = f"(?<!{_D})(?<![¥$])"
_AFTER = rf"(?!{_D})(?![.]{_D}{{1,2}}(?!{_D}))(?![ ]?[元万亿%])"  # an amount is no phone number
_DASH = "[-\u2010\u2012-\u2015\u2212]"
_GAP = f"[ ]?{_DASH}{{0,10}}[ ]?"
_REQUIRED_GAP = f"(?:[ ]|[ ]?{_DASH}{{1,10}}[ ]?|[)）][ ]?)"
_CHINA = f"[(（]?(?:[+]|00)?86[)）]?{_GAP}"
_AREA3 = f"(?:10|2{_D})"  # 010, 02x: eight digits follow, formerly seven
_AREA4 = f"[3-9]{_D}{{2}}"
_LOCAL7 = f"{_D}{{3}}{_GAP}{_D}{{4}}"
_LOCAL8 = f"{_D}{{4}}{_GAP}{_D}{{4}}"
_EXTENSION = (
    rf"(?:(?:{_DASH}|[ ]?(?:转|轉|分机|ext[.]?|[#])[ ]?[:：]?){_D}{{1,6}})?"
    f"(?:[ ]?[/、][ ]?{_D}{{7,8}}(?!{_D}))*"  # 010-62345678/62345679
)
# 400 and 800 numbers without separators: the digits that service numbers go on with; no ISBN (group 4 is
# Japan's) and no count.
_SERVICE = (
    rf"(?<![A-Za-z])(?<![0-9][.])(?<!ISBN[ :：])(?<!ISBN[:：][ ])(?:400[016-9]|800[789]){_D}{{6}}"
    f"(?![A-Za-z]){_AFTER}(?![ ]?[人股吨吨米点度只件户册台辆美港日欧块])"
)
_PHONE = rf"""
    {_BEFORE}(?:{_CHINA})?1[3-9]{_D}(?:{_GAP}{_D}{{4}}{_GAP}{_D}{{4}}|[.]{_D}{{4}}[.]{_D}{{4}}
        |{_D}{_REQUIRED_GAP}{_D}{{3}}{_REQUIRED_GAP}{_D}{{4}}){_AFTER}
    # Without a separator ten digits could be an ISBN, so seven digits need one after 010 and 02x.
    # Nor is the rest of a bank card in groups of four: 6222 0555 2345 6789.
  | {_BEFORE}(?<!{_D}[.])(?!(?<=(?<!{_D}){_D}{{4}}[ -])0{_D}{{3}}(?:[ -]{_D}{{4}}){{2}})
        (?:{_CHINA})?[(（]?0
        (?:{_AREA3}(?:[)）]?{_GAP}{_LOCAL8}|{_REQUIRED_GAP}{_LOCAL7})
        |{_AREA4}[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7})){_EXTENSION}{_AFTER}
  | (?<![0-9A-Za-z])[(（]?(?:(?:[+]|00)86[)）]?{_GAP}|86{_DASH})
        [(（]?(?:{_AREA3}|{_AREA4})[)）]?{_GAP}(?:{_LOCAL8}|{_LOCAL7}){_EXTENSION}{_AFTER}
  | {_BEFORE}[48]00
        (?:{_REQUIRED_GAP}(?:{_D}{{3}}{_GAP}{_D}{{4}}|{_D}{{4}}{_GAP}{_D}{{3}})
        |{_D}{_REQUIRED_GAP}{_D}{{3}}{_GAP}{_D}{{3}}){_EXTENSION}{_AFTER}
  | {_BEFORE}{_SERVICE}
  | (?<![0-9A-Za-z)）+])[+](?=(?:[^0-9A-Za-z]{{0,3}}{_D}){{10}}){_D}{{1,3}}
        (?:{_GAP}[(（]?{_D}{{1,12}}[)）]?){{1,6}}{_AFTER}
  | (?<![0-9A-Za-z/-])(?<![0-9][.])(?:1[-. ])?
        (?:[(（][2-9][0-9]{{2}}[)）][ ]?|[2-9][0-9]{{2}}[-.])[0-9]{{3}}[-.][0-9]{{4}}{_AFTER}
"""
# A bare local number is a phone number only after a word such as 电话.
_PHONE_AFTER_WORD = rf"""
    (?:电话|热线|传真|座机|致电|(?<![A-Za-z])(?:telephone|tel|fax|phone))(?:号码|号)?[ :：.是为]{{0,3}}
    (?!0)(?P<local>(?:{_LOCAL8}|{_LOCAL7}|[48]00{_D}{{7}})(?:[ ]?[/、,，][ ]?{_D}{{7,8}}(?!{_D}))*)
    {_AFTER}(?!年|{_GAP}{_D})
"""
_LINKS = f"(?P<link>{_LINK})|(?P<email>{_EMAIL})"
_PHONES = f"(?P<phone>{_PHONE})|{_PHONE_AFTER_WORD}"
PRIVATE, LINK_ONLY, PHONE_ONLY = (
    re.compile(pattern, re.VERBOSE | re.IGNORECASE | re.ASCII)
    for pattern in (f"{_LINKS}|{_PHONES}", _LINKS, _PHONES)
)
"""Each match has one of the groups `link`, `email`, `phone` and `local` (a number after a word like 电话)."""

PHONE_CHARACTERS = (
    "extlphonfaEXTLPHONFA0123456789+()（）-\u2010\u2012\u2013\u2014\u2015\u2212.,，/、:：#转轉分机"
    "电话热线传真座致号码是为 "
)
"""Characters of phone numbers, of the word before one and of what stands between the two."""
# No link and no address holds a quotation mark, a bracket of a tag or the like.
LINK_CHARACTERS = "".join(sorted({*map(chr, range(0x21, 0x7F))} - {*"\"'<>\\^`{|}"})) + "：（）"
"""Characters of links and addresses, except for Chinese hosts."""
