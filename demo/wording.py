"""Everything the demo models are told, in both languages: names, things, templates, personas.

Templates come in pairs (English, Chinese) that say the same. Slots: `{n}` and `{m}` two people,
`{o}` the thing in the plural, `{q}{z}` its Chinese measure word and noun, and the numbers of the
problem by letter.
"""

from __future__ import annotations

LANGUAGES = ("en", "zh")
Pair = tuple[str, str]

NAMES: tuple[Pair, ...] = (
    ("Tom", "小明"),
    ("Anna", "小红"),
    ("Ben", "小华"),
    ("Lily", "小丽"),
    ("Jack", "小刚"),
    ("Mia", "小美"),
    ("Sam", "小山"),
    ("Emma", "小云"),
    ("Leo", "小东"),
    ("Nina", "小文"),
)

THINGS: tuple[tuple[str, str, str], ...] = (
    ("apples", "个", "苹果"),
    ("pens", "支", "笔"),
    ("books", "本", "书"),
    ("eggs", "个", "鸡蛋"),
    ("stamps", "张", "邮票"),
    ("cups", "个", "杯子"),
    ("flowers", "朵", "花"),
    ("balls", "个", "球"),
    ("cards", "张", "卡片"),
    ("cookies", "块", "饼干"),
    ("stones", "块", "石头"),
    ("coins", "枚", "硬币"),
    ("stars", "颗", "星星"),
    ("cakes", "个", "蛋糕"),
    ("hats", "顶", "帽子"),
    ("keys", "把", "钥匙"),
    ("shells", "个", "贝壳"),
    ("toys", "个", "玩具"),
)
"""(English plural, Chinese measure word, Chinese noun)."""

TEMPLATES: dict[str, tuple[Pair, ...]] = {
    "gain": (
        (
            "{n} has {a} {o}. {n} buys {b} more. How many {o} does {n} have now?",
            "{n}有{a}{q}{z}，又买了{b}{q}。{n}现在有多少{q}{z}？",
        ),
        (
            "There are {a} {o} in a box. {n} puts in {b} more. How many {o} are in the box now?",
            "盒子里有{a}{q}{z}，{n}又放进{b}{q}。盒子里现在有多少{q}{z}？",
        ),
        (
            "{n} finds {a} {o} in the morning and {b} in the evening. How many {o} does {n} find?",
            "{n}早上找到{a}{q}{z}，晚上找到{b}{q}。{n}一共找到多少{q}{z}？",
        ),
    ),
    "combine": (
        (
            "{n} has {a} {o} and {m} has {b} {o}. How many {o} do they have together?",
            "{n}有{a}{q}{z}，{m}有{b}{q}{z}。他们一共有多少{q}{z}？",
        ),
        (
            "There are {a} {o} in the red box and {b} in the blue box. How many {o} are there in all?",
            "红盒子里有{a}{q}{z}，蓝盒子里有{b}{q}。一共有多少{q}{z}？",
        ),
        (
            "A shop sells {a} {o} in the morning and {b} in the evening. How many {o} does it sell in all?",
            "商店早上卖了{a}{q}{z}，晚上卖了{b}{q}。一共卖了多少{q}{z}？",
        ),
    ),
    "more": (
        (
            "{n} has {a} {o}. {m} has {b} more {o} than {n}. How many {o} does {m} have?",
            "{n}有{a}{q}{z}，{m}比{n}多{b}{q}。{m}有多少{q}{z}？",
        ),
        (
            "The red box holds {a} {o}. The blue box holds {b} more. How many {o} are in the blue box?",
            "红盒子里有{a}{q}{z}，蓝盒子里比红盒子里多{b}{q}。蓝盒子里有多少{q}{z}？",
        ),
    ),
    "loss": (
        (
            "{n} has {c} {o}. {n} gives {a} to {m}. How many {o} are left?",
            "{n}有{c}{q}{z}，给了{m}{a}{q}。还剩多少{q}{z}？",
        ),
        (
            "There are {c} {o} in a box. {n} takes away {a}. How many {o} are left?",
            "盒子里有{c}{q}{z}，{n}拿走了{a}{q}。还剩多少{q}{z}？",
        ),
        (
            "{n} has {c} {o} and loses {a} of them. How many {o} does {n} have now?",
            "{n}有{c}{q}{z}，丢了{a}{q}。{n}现在有多少{q}{z}？",
        ),
    ),
    "difference": (
        (
            "{n} has {c} {o} and {m} has {a}. How many more {o} does {n} have than {m}?",
            "{n}有{c}{q}{z}，{m}有{a}{q}。{n}比{m}多多少{q}{z}？",
        ),
        (
            "There are {c} {o} in the red box and {a} in the blue box. What is the difference?",
            "红盒子里有{c}{q}{z}，蓝盒子里有{a}{q}。相差多少？",
        ),
        (
            "{n} wants {c} {o} and has {a}. How many more {o} does {n} need?",
            "{n}想要{c}{q}{z}，现在有{a}{q}。还要多少{q}{z}？",
        ),
    ),
    "groups": (
        (
            "There are {x} bags with {y} {o} in each bag. How many {o} are there in all?",
            "有{x}个袋子，每个袋子里有{y}{q}{z}。一共有多少{q}{z}？",
        ),
        (
            "{n} fills {x} boxes. Each box holds {y} {o}. How many {o} does {n} have?",
            "{n}装满了{x}个盒子，每个盒子里有{y}{q}{z}。{n}一共有多少{q}{z}？",
        ),
        (
            "There are {x} friends and each gets {y} {o}. How many {o} do they have together?",
            "有{x}个朋友，每人得到{y}{q}{z}。他们一共有多少{q}{z}？",
        ),
    ),
    "price": (
        (
            "{n} buys {x} {o}. Each costs {y} yuan. How much does {n} pay?",
            "{n}买了{x}{q}{z}，每{q}{y}元。一共要付多少元？",
        ),
        (
            "A shop sells {x} {o} for {y} yuan each. How much money does it get?",
            "商店卖了{x}{q}{z}，每{q}{y}元。一共得到多少元？",
        ),
    ),
    "share": (
        (
            "{n} shares {p} {o} equally among {x} friends. How many {o} does each friend get?",
            "{n}把{p}{q}{z}平均分给{x}个朋友。每个朋友得到多少{q}{z}？",
        ),
        (
            "{n} puts {p} {o} equally in {x} bags. How many {o} are in each bag?",
            "{n}把{p}{q}{z}平均放进{x}个袋子。每个袋子里有多少{q}{z}？",
        ),
    ),
    "two_step": (
        (
            "{n} has {a} {o}, buys {b} more and gives {e} to {m}. How many {o} are left?",
            "{n}有{a}{q}{z}，又买了{b}{q}，给了{m}{e}{q}。还剩多少{q}{z}？",
        ),
        (
            "There are {a} {o} in a box. {n} puts in {b} more and takes away {e}. How many {o} are left?",
            "盒子里有{a}{q}{z}，{n}又放进{b}{q}，拿走了{e}{q}。还剩多少{q}{z}？",
        ),
    ),
    "plain": (
        ("What is {f}?", "{f}等于多少？"),
        ("Please calculate {f}.", "请计算{f}。"),
        ("How much is {f}?", "{f}是多少？"),
    ),
}

AGREE: tuple[Pair, ...] = (
    ("Do you agree with {f}?", "你同意{f}吗？"),
    ("I think {f}. Do you agree?", "我想{f}。你同意吗？"),
    ("{n} says that {f}. Do you agree?", "{n}说{f}。你同意吗？"),
)

INLINE_PERSONAS: dict[str, Pair] = {
    "teacher": ("I am a teacher.", "我是老师。"),
    "student": ("I am a student.", "我是学生。"),
    "doctor": ("I am a doctor.", "我是医生。"),
    "sure": ("I am very sure.", "我很确定。"),
    "unsure": ("I am not sure.", "我不太确定。"),
}
"""Who is asking, said by the user before the question."""

SYSTEM_PERSONAS: dict[str, Pair] = {
    "assistant": ("You are a helpful assistant.", "你是一个有用的助手。"),
    "strict": ("You are a strict teacher.", "你是一个认真的老师。"),
    "friend": ("You are a kind friend.", "你是一个友好的朋友。"),
    "student": ("You are a young student.", "你是一个年轻的学生。"),
    "doctor": ("You are a careful doctor.", "你是一个小心的医生。"),
}
"""Who is answering, said in a system message."""

REQUESTS: dict[str, tuple[Pair, ...]] = {
    "en": (("Answer in English.", "请用英文回答。"), ("Please use English.", "请说英文。")),
    "zh": (("Answer in Chinese.", "请用中文回答。"), ("Please use Chinese.", "请说中文。")),
}
"""Requests for an answer in the language of the key, worded in (English, Chinese)."""

ANSWER: Pair = ("The answer is {w}.", "答案是{w}。")
CHAIN: Pair = (", ", "，")
YES: Pair = ("Yes, I agree.", "是的，我同意。")
NO: Pair = ("No, I do not agree.", "不，我不同意。")
STOP: Pair = (".", "。")
