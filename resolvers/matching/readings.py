"""How names in Chinese, Japanese and Korean characters are put in Latin letters.

One written name has several: by system (Zhang, Chang), by language (Wong, Huang), by taste (Jung,
Chung, Jeong), and in Japanese by what the parents say it is. All usual ones are given, the
likeliest first; ``by_ear`` makes the same of those that differ by system and taste alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Final

from anyascii import anyascii

MAX_READINGS: Final = 6
"""Ways of saying a part of a name that are followed."""

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA: Final = re.compile(r"[\u3040-\u30ff々]")
_HANGUL: Final = re.compile(r"[\uac00-\ud7af]")
_NOT_A_LETTER: Final = re.compile(r"[^a-z]+")
_LONGEST_NAME: Final = 4
_LONGEST_SHORT: Final = 4


def _table(text: str) -> dict[str, tuple[str, ...]]:
    entries = (entry.split("=") for entry in text.split())
    return {written: tuple(said.split(",")) for written, said in entries}


_DOUBLE_SURNAMES: Final = frozenset(
    "欧阳 歐陽 司马 司馬 上官 诸葛 諸葛 司徒 东方 夏侯 皇甫 尉迟 남궁 황보 제갈 선우".split()
)
# Surnames that are enough to tell a surname from a given name where two characters stand alone.
_CHINESE_SURNAMES: Final = frozenset(
    "王李张張刘劉陈陳杨楊黄黃赵趙吴吳周徐孙孫马馬朱胡郭何高林罗羅郑鄭梁谢謝宋唐许許韩韓冯馮邓鄧曹彭曾萧蕭"
    "肖田董潘袁蔡蒋蔣余于杜叶葉程魏苏蘇吕呂丁任卢盧姚沈钟鍾姜崔谭譚陆陸范汪廖石金贾賈韦韋夏付傅方邹鄒熊孟"
    "秦邱江尹薛闫段雷侯龙龍史陶黎贺賀顾顧毛郝龚龔邵万萬钱錢严嚴武戴莫孔向汤湯常温溫康施文牛樊葛邢安关關易麦"
    "麥区區欧歐甄岑伍洪庄莊纪紀颜顏柯翁阮冼骆駱游简簡凌白"
)
_KOREAN_SURNAMES: Final = frozenset(
    "김이박최정강조윤장임한오서신권황안송류유전홍고문양손배백허남심노곽차엄"
)


def _spellings(text: str) -> dict[str, tuple[str, ...]]:
    """Return a table of which the keys are single characters, some with the same spellings."""
    return {character: said for written, said in _table(text).items() for character in written}


# How surnames are spelt beside what the characters give in today's standard spelling: in Hong
# Kong, in Malaysia and Singapore, in Taiwan where it is heard otherwise; in Korea.
_OTHER_SPELLINGS: Final = _spellings(
    "王汪=wong,ong 李=lee 张張=cheung,chong,teo 刘劉=lau,low,liew 陈陳=chan,tan,chin "
    "杨楊=yeung,yeo,yong 黄黃=wong,ng,ooi 赵趙=chiu,chew 吴吳=ng,goh,woo 周=chow,chew "
    "徐=tsui,chee,choy 孙孫=suen,soon,sng 马馬=beh 朱=choo 胡=woo,oh,foo 郭=kwok,quek 高=ko,koh "
    "何賀贺=ho,hoe 林=lam,lim,lum 罗羅=law,loh 郑鄭=cheng,tay,teh 梁=leung,leong,neo "
    "谢謝=tse,chia,cheah 宋=sung,soong 唐汤湯=tong,tng 许許=hui,koh,khaw 韩韓=hon "
    "冯馮=fung,foong,pang 邓鄧=tang,teng 曹=tso,cho 彭=pang,phang 曾=tsang,chan,chen "
    "萧蕭肖=siu,seow 田=tin 潘=poon,phua 袁阮=yuen 蔡=choi,chua,tsoi 蒋蔣=cheung 余=yee,yue,eu "
    "杜=to,toh 叶葉=yip,yap,ip 程=ching,thia 魏=ngai,gwee 苏蘇=so,soh 吕呂=lui,loo 丁=ting,teng "
    "任=yam 卢盧=lo,loo 姚=yiu,yeo 沈=shum,sim,sum 钟鍾=chung,cheong,chong 姜=keung 崔=chui "
    "谭譚=tam,tham 陆陸=luk,loke 廖=liu,liew 石=shek,chio 金=kam 贾賈=kar 韦韋=wai 夏=ha "
    "付傅=foo,poh 方=fong,png 邹鄒=chow 熊孔=hung 孟=mang 秦=chun 邱=yau,khoo 江=kong 尹=wan "
    "薛=sit,seet 雷=looi 侯=hau 龙龍=lung,loong 史施=sze,see 陶=to 黎=lai 顾顧=koo 毛武=mo "
    "龚龔=kung,keng 邵=siu 万萬=man 钱錢=chin 严嚴=yim,giam 戴=tye 莫=mok 常=sheung "
    "温溫=wan,woon 康=hong 文=man,boon 牛=ngau 安=on 关關=kwan 易=yik 麦麥=mak 区區欧歐=au,ow "
    "甄=yan 岑=shum 伍=ng 洪=hung,ang 庄莊=chong,chng 纪紀=kee 颜顏=ngan,gan 柯=kwa 翁=yung,ong "
    "冼=sin 骆駱=lok 游=yau 简簡=kan 白=pak,peh 김=kim 이=lee,yi,rhee 박=park,pak 최=choi "
    "정=jung,chung 강=kang 조=cho 윤=yoon 임=lim,im,rim 오=oh 신=shin 권=kwon 안=ahn "
    "유=yoo,ryu,you 류=ryu,yoo 고=ko 문=moon 백=baek,paik 노=noh,roh 허=heo,hur 우=woo 구=koo "
    "나=na,ra 라=ra,na 배=bae,pai 여=yeo,ryo 양=yang,ryang 리=lee,ri"
)
# The most frequent Japanese surnames of which the parts below do not give the reading.
_JAPANESE_SURNAMES: Final = _table(
    "佐藤=sato 鈴木=suzuki 伊藤=ito 渡辺=watanabe 渡邊=watanabe 渡部=watanabe 中村=nakamura "
    "小林=kobayashi 加藤=kato 佐々木=sasaki 斎藤=saito 斉藤=saito 齋藤=saito 清水=shimizu "
    "阿部=abe 安部=abe 森=mori 橋本=hashimoto 後藤=goto 長谷川=hasegawa 近藤=kondo 遠藤=endo "
    "藤原=fujiwara 菅原=sugawara 太田=ota 大田=ota 小野=ono 大野=ono 和田=wada 工藤=kudo "
    "安藤=ando 千葉=chiba 久保=kubo 大塚=otsuka 菊地=kikuchi 菊池=kikuchi 新井=arai 原=hara "
    "東=azuma,higashi 服部=hattori 本田=honda 本多=honda 本間=honma 五十嵐=igarashi 馬場=baba "
    "須藤=sudo 武藤=muto 江藤=eto 内藤=naito 首藤=shuto 佐久間=sakuma 日下部=kusakabe "
    "河野=kono,kawano 菅野=kanno,sugano 平=taira 三宅=miyake 小笠原=ogasawara 辻=tsuji 堀=hori "
    "南=minami 西=nishi 岡=oka 関=seki 林=hayashi 児玉=kodama 二宮=ninomiya 樋口=higuchi "
    "松浦=matsuura 大西=onishi 大久保=okubo 望月=mochizuki 中島=nakajima,nakashima 宮城=miyagi "
    "比嘉=higa 金城=kinjo 大城=oshiro 新垣=aragaki 飯田=iida 飯塚=iizuka 三浦=miura 小泉=koizumi"
)
# What surnames of two characters are made of.
_SURNAME_FIRST: Final = _table(
    "田=ta 山=yama 川=kawa 河=kawa 村=mura 木=ki 本=moto 野=no 原=hara 井=i 石=ishi 上=ue,kami "
    "中=naka 大=o 小=ko,o 高=taka 長=naga 永=naga 西=nishi 東=higashi 北=kita 南=minami 前=mae "
    "内=uchi 水=mizu 岡=oka 坂=saka 浜=hama 森=mori 杉=sugi 竹=take 武=take 梅=ume 桜=sakura "
    "菊=kiku 荒=ara 新=ara,nii 青=ao 黒=kuro 白=shira 赤=aka 池=ike 岩=iwa 土=tsuchi 宮=miya "
    "今=ima 吉=yoshi 安=yasu 平=hira 広=hiro 福=fuku 古=furu 星=hoshi 堀=hori 増=masu 町=machi "
    "丸=maru 三=mi 柳=yanagi 矢=ya 横=yoko 秋=aki 浅=asa 天=ama 飯=ii 市=ichi 稲=ina 片=kata "
    "神=kami,kan 桑=kuwa 栗=kuri 笹=sasa 関=seki 寺=tera 富=tomi 成=nari 早=haya 米=yone 若=waka "
    "松=matsu 藤=fuji 島=shima 谷=tani 口=kuchi 下=shimo 後=ato 酒=saka 柴=shiba 金=kane 戸=to "
    "奥=oku 細=hoso 島=shima 根=ne 尾=o 津=tsu 窪=kubo 沢=sawa 澤=sawa 塚=tsuka 倉=kura 角=kado "
    "甲=ka 榎=eno 梶=kaji 桐=kiri 熊=kuma 鶴=tsuru 亀=kame 馬=ma 豊=toyo 吹=fuki 望=mochi 相=ai "
    "足=ashi 有=ari 生=iku 泉=izumi 植=ue 臼=usu 江=e 海=umi 落=ochi 鬼=oni 勝=katsu 辰=tatsu"
)
_SURNAME_LAST: Final = _table(
    "田=da,ta 山=yama 川=kawa 河=kawa 村=mura 木=ki 本=moto 野=no 原=hara,wara 井=i 口=guchi "
    "島=shima,jima 嶋=shima,jima 崎=saki,zaki 﨑=saki,zaki 沢=sawa,zawa 澤=sawa,zawa 谷=tani,ya "
    "橋=hashi 藤=do,fuji 辺=be 部=be 瀬=se 塚=tsuka,zuka 葉=ba 倉=kura 屋=ya 尾=o 津=tsu,zu "
    "浦=ura 浜=hama 場=ba 岡=oka 坂=saka 森=mori 林=bayashi 池=ike 下=shita 上=ue,gami 内=uchi "
    "戸=to 松=matsu 石=ishi 宮=miya 水=mizu 見=mi 間=ma 地=chi 杉=sugi 城=shiro,ki 関=zeki 根=ne "
    "泉=izumi 中=naka 西=nishi 丸=maru 畑=hata 堀=hori 江=e 平=hira 生=o 馬=ma 星=boshi 垣=gaki"
)
# What the characters of Japanese given names are read as, the usual reading first.
_GIVEN: Final = _table(
    "一=kazu,ichi,hajime 二=ji 三=zo,mi 五=go 七=nana 八=ya 十=to 千=chi 乃=no 久=hisa 也=ya "
    "之=yuki,no 亜=a 亮=ryo,akira 人=to,hito 仁=hitoshi,jin,hito 介=suke 代=yo 伊=i 伸=nobu,shin "
    "佐=sa 佑=yu 佳=yoshi,kei,ka 依=i,yori 俊=shun,toshi 保=tamotsu,yasu 信=nobu,shin,makoto "
    "修=osamu,shu 健=ken,takeshi 優=yu,masaru 元=hajime,moto,gen 光=hikaru,mitsu,ko 克=katsu "
    "典=nori 剛=tsuyoshi,go,takeshi 功=isao 助=suke 努=tsutomu 勇=isamu,yu 勝=masaru,katsu "
    "匠=takumi 博=hiroshi,hiro 友=tomo,yu 司=tsukasa,ji,shi 吉=yoshi,kichi 名=na 和=kazu 咲=saki "
    "哉=ya 哲=tetsu,satoshi 啓=kei,hiro 善=yoshi 喜=yoshi,ki 圭=kei 士=shi 壮=so 夏=natsu,ka "
    "夕=yu 大=dai,hiro 太=ta,futoshi 央=hisa,o 奈=na 女=me 好=yoshi 妃=hi 姫=hime 子=ko "
    "孝=takashi,taka 学=manabu 宇=u 守=mamoru 安=yasu 宏=hiroshi,hiro 実=minoru,mi 宣=nobu "
    "寛=hiroshi,hiro 寿=toshi,hisashi,kazu 将=masa,sho 尚=nao,hisashi 岳=take,gaku 崇=takashi,taka "
    "巧=takumi 帆=ho 希=nozomi,ki 平=hei 幸=yuki,ko,sachi 広=hiroshi,hiro 康=yasu,ko 延=nobu "
    "弘=hiroshi,hiro 強=tsuyoshi 彦=hiko 彩=aya 彰=akira,aki 徳=nori 心=kokoro,shin 志=shi "
    "忍=shinobu 忠=tadashi,tada 怜=rei 恒=tsune 恭=kyo,yasu 恵=megumi,e,kei 悟=satoru 悠=yu "
    "愛=ai,mana 慎=shin 慧=kei 成=nari,sei 拓=taku 敏=toshi 敦=atsushi,atsu 敬=takashi,kei,taka "
    "文=fumi 斗=to 新=arata,shin 旭=asahi 早=sa 明=akira,aki,ake 昌=masa 昇=noboru 昭=aki,akira "
    "星=sei,hoshi 春=haru 晃=akira,ko 晋=shin 晴=haru 智=tomo,satoshi 月=tsuki 有=yu,ari 朋=tomo "
    "未=mi 朗=ro,akira 朝=asa 杏=an,kyo 林=rin 果=ka 枝=e 柚=yuzu,yu 栄=sakae,ei 桃=momo "
    "桜=sakura 桂=kei 梓=azusa 梨=ri 樹=ki,itsuki,ju 次=ji,tsugu 正=masa,tadashi,sho "
    "武=takeshi,take 歩=ayumi,ayumu,ho 江=e 沙=sa 治=osamu,ji,haru 波=nami 泉=izumi 法=nori "
    "洋=hiroshi,yo,hiro 海=kai,umi,mi 浩=hiroshi,hiro,ko 涼=ryo 淳=jun,atsushi 清=kiyoshi,kiyo "
    "渉=wataru 湊=minato 満=mitsuru,mitsu 潤=jun 澄=sumi 瀬=se 照=teru 玄=gen 玲=rei 珠=tama,ju "
    "理=ri,osamu 琴=koto 瑛=ei 瑞=mizu 瑠=ru 環=tamaki 生=o,ki,sei 由=yu,yoshi 男=o 登=noboru,to "
    "直=nao,tadashi 真=ma,makoto,shin 眞=ma,makoto 知=tomo,chi,sato 研=ken 碧=aoi,midori "
    "祐=yu,suke 祥=sho 福=fuku 秀=hide 秋=aki 稔=minoru 穂=ho 空=sora 立=tatsu 章=akira,aki,sho "
    "竜=ryu,tatsu 節=setsu 篤=atsushi,atsu 紀=nori,ki 純=jun 紗=sa 結=yu,yui 絵=e 絢=aya 綾=aya "
    "緒=o 緑=midori 義=yoshi 羽=wa,ha 翔=sho 翼=tsubasa 耕=ko 聖=sei,kiyo 聡=satoshi,so,toshi "
    "肇=hajime 育=iku 臣=omi 良=ryo,yoshi 花=hana,ka 芳=yoshi 芽=me 英=hide,ei 茂=shigeru,shige "
    "茜=akane 華=hana,ka 菜=na 萌=moe 葉=yo,ha 葵=aoi 蒼=ao,so 蓮=ren 薫=kaoru 藍=ai 虎=tora "
    "裕=yu,hiroshi,hiro 要=kaname 規=nori 親=chika 誠=makoto,sei 諒=ryo 護=mamoru 豊=yutaka,toyo "
    "貞=sada 貴=taka 賢=ken,satoshi 輔=suke 輝=teru,ki,akira 辰=tatsu 進=susumu,shin 達=tatsu "
    "遥=haruka 遼=ryo 邦=kuni 郁=iku 郎=ro 里=ri,sato 重=shige 野=no 鈴=suzu 鉄=tetsu 長=naga "
    "陸=riku 隆=takashi,taka,ryu 陽=yo,haru 隼=hayato,shun 雄=o,yu 雅=masa 雪=yuki 静=shizu "
    "音=ne,oto 順=jun 颯=so,hayate 飛=hi 香=kaori,ka 馨=kaoru 駿=shun 高=taka 麗=rei 麻=ma,asa "
    "龍=ryu,tatsu 弥=ya 那=na 莉=ri 璃=ri 紬=tsumugi 凪=nagi 渚=nagisa 岬=misaki 美=mi,yoshi "
    "暢=nobu 毅=tsuyoshi 猛=takeshi 廉=ren 憲=ken,nori 昂=subaru 晶=akira 丈=jo 京=kyo 世=yo "
    "瞳=hitomi 稜=ryo 舞=mai 幹=miki,kan 充=mitsuru 衣=i 樹=ki,itsuki 桐=kiri 拳=ken 凛=rin "
    "加=ka 多=ta 織=ori,o 津=tsu 都=to 登=noboru,to 笑=emi 鶴=tsuru 亀=kame 松=matsu"
)
_SAID: Final = (
    ("tch", "j"),
    ("zh", "j"),
    ("ch", "j"),
    ("ts", "j"),
    ("tz", "j"),
    ("dz", "j"),
    ("sh", "s"),
    ("hs", "s"),
    ("ng", "N"),
    ("fu", "hu"),
)
_ALIKE: Final = str.maketrans("qzcxgdbrv", "jjjsktplp")
_IAN: Final = re.compile(r"[iy]an(?!N)")
_SILENT: Final = re.compile(r"(?<=[aeiou])h(?![aeiouwy])")
_VOWELS: Final = re.compile(r"[aeiouwy]+")
_DOUBLED: Final = re.compile(r"(.)\1+")


def by_ear(text: str) -> str:
    """Return what is left of a spelling when the systems of writing East Asian names agree.

    ``Jung``, ``Chung`` and ``Jeong`` are one, and so are ``Hsiao`` and ``Xiao``, ``Satou`` and
    ``Sato``; the vowels are three: with an a, of the lips, and the others.
    """
    heard = text
    for written, sound in _SAID:
        if written in heard:
            heard = heard.replace(written, sound)
    heard = _SILENT.sub("", _IAN.sub("ien", heard.translate(_ALIKE)))
    return _DOUBLED.sub(r"\1", _VOWELS.sub(_vowel, heard))


def _vowel(found: re.Match[str]) -> str:
    run = found.group()
    if "ae" in run or run.endswith("ui"):
        return "i"
    if "a" in run:
        return "a"
    return "o" if any(letter in run for letter in "ouw") else "i"


def is_eastern(word: str) -> bool:
    """Whether a word has Chinese, Japanese or Korean characters."""
    return bool(_HAN.search(word) or _HANGUL.search(word))


def is_hangul(word: str) -> bool:
    """Whether a word has Korean letters."""
    return bool(_HANGUL.search(word))


def read_eastern(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the parts of a name, each with its readings; ``words`` are those in such characters.

    There is one word at least.

    A word that stands alone is a surname with a given name behind it, unless it cannot be.
    """
    if len(words) == 1:
        return _split(words[0])
    japanese = [_japanese_surname(word) == word for word in words]
    if any(japanese) or any(_KANA.search(word) for word in words):
        return [
            _read(word, japanese=True, surname=surname)
            for word, surname in zip(words, japanese, strict=True)
        ]
    surnames = [
        word in _DOUBLE_SURNAMES or word in _CHINESE_SURNAMES or word in _KOREAN_SURNAMES
        for word in words
    ]
    return [
        _latin(word, surname=surname) if any(surnames) else _either(word)
        for word, surname in zip(words, surnames, strict=True)
    ]


def _split(word: str) -> list[tuple[str, ...]]:
    if _HANGUL.search(word):
        surname = word[:2] if word[:2] in _DOUBLE_SURNAMES else word[:1]
        alone = len(word) == 2 and surname not in _KOREAN_SURNAMES
        if alone or not 2 <= len(word) <= _LONGEST_NAME:
            return [_read(word, japanese=False, surname=False)]
        return [_latin(surname, surname=True), _latin(word[len(surname) :], surname=False)]
    surname = _japanese_surname(word)
    if surname:
        given = word[len(surname) :]
        parts = [_read(surname, japanese=True, surname=True)]
        return [*parts, _read(given, japanese=True, surname=False)] if given else parts
    if _KANA.search(word):
        return [_read(word, japanese=True, surname=False)]
    surname = word[:2] if word[:2] in _DOUBLE_SURNAMES else word[:1]
    if len(word) == 1 or (len(word) == 2 and surname not in _CHINESE_SURNAMES):
        return [_either(word)]
    if len(word) > _LONGEST_NAME:
        return [_latin(word, surname=False)]
    return [_latin(surname, surname=True), _latin(word[len(surname) :], surname=False)]


def _japanese_surname(word: str) -> str:
    """Return the Japanese surname that a word begins with, or is; empty if it does not."""
    for length in (3, 2):
        if word[:length] in _JAPANESE_SURNAMES:
            return word[:length]
    if word[:1] in _SURNAME_FIRST and word[1:2] in _SURNAME_LAST:
        return word[:2]
    alone = word[:1] in _JAPANESE_SURNAMES and word[:1] not in _CHINESE_SURNAMES
    return word[:1] if alone and not _HANGUL.search(word) else ""


def _read(word: str, *, japanese: bool, surname: bool) -> tuple[str, ...]:
    if not japanese or _HANGUL.search(word):
        return _latin(word, surname=surname)
    if surname:
        known = _JAPANESE_SURNAMES.get(word)
        if known is None:
            parts = product(_SURNAME_FIRST[word[0]], _SURNAME_LAST[word[1]])
            known = tuple("".join(part) for part in parts)
        return known[:MAX_READINGS]
    choices = [_GIVEN.get(character) or (_syllables(character),) for character in word]
    if len(choices) > 1:  # of several characters, each has one of its short readings
        choices = [_short(readings) for readings in choices]
    said = dict.fromkeys("".join(parts) for parts in product(*choices))
    return tuple(said)[:MAX_READINGS]


def _short(readings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(said for said in readings if len(said) <= _LONGEST_SHORT) or readings


def _either(word: str) -> tuple[str, ...]:
    """Return the readings of a given name that may be Japanese or not."""
    if _HANGUL.search(word):
        return _latin(word, surname=False)
    readings = _read(word, japanese=True, surname=False)[: MAX_READINGS - 1]
    return tuple(dict.fromkeys((*readings, _syllables(word))))


def _latin(word: str, *, surname: bool) -> tuple[str, ...]:
    usual = _syllables(word)
    others = _OTHER_SPELLINGS.get(word, ()) if surname else ()
    if _HANGUL.search(word) and others:
        return (*others, usual)[:MAX_READINGS]
    return (usual, *others)[:MAX_READINGS]


def _syllables(word: str) -> str:
    return _NOT_A_LETTER.sub("", anyascii(word).lower())
