"""Measures the detectors of pipeline/quality on drawn texts: `python -m benchmarks.quality`.

Draws good answers of many forms (captions, lists, tables, JSON, signs, verses) and faulty
ones of each kind, and prints precision and recall by kind, and the microseconds of a text.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable

from mediamill.pipeline.quality.findings import Kind, findings

THINGS = [
    "dog",
    "cat",
    "bicycle",
    "red",
    "star",
    "market",
    "street",
    "lamp",
    "boat",
    "child",
    "window",
    "tower",
    "river",
    "table",
]
PLACES = [
    "beach",
    "park",
    "kitchen",
    "narrow street",
    "crowded market",
    "snowy field",
    "train station",
]
ADJECTIVES = [
    "small",
    "large",
    "old",
    "bright",
    "wooden",
    "blue",
    "quiet",
    "golden",
    "broken",
    "empty",
    "tall",
]
FOREIGN = {
    "de": "Auf dem Bild ist {a} {b} zu sehen, der neben einer alten Brücke in der Sonne steht.",
    "fr": "On voit {a} {b} dans une rue étroite, avec des maisons et un ciel bleu sur la droite.",
    "es": "En la imagen se ve {a} {b} en una calle, con las montañas y el cielo al fondo.",
    "it": "Nella foto c'è {a} {b} in una piazza, con le case e il cielo sullo sfondo.",
    "pt": "Na imagem há {a} {b} em uma rua com as casas e o céu ao fundo.",
    "nl": "Op de foto staat {a} {b} in een smalle straat met de huizen en het water.",
    "sv": "På bilden är {a} {b} på en gata med hus och ett träd som står till höger.",
    "pl": "Na zdjęciu jest {a} {b} na ulicy, a za nim są domy i drzewa w słońcu.",
    "zh": "图片中有一只{a}在{b}旁边，背景是一片蓝天。",
    "ja": "写真には{a}と{b}が写っています。後ろに青い空が見えます。",
    "ko": "사진에는 {a} 옆에 {b}가 있으며 뒤에는 파란 하늘이 보입니다.",
    "ru": "На фотографии {a} стоит рядом с {b}, а за ними видно море и небо.",
    "ar": "تظهر في الصورة {a} بجانب {b} مع سماء زرقاء في الخلفية.",
}
REFUSALS = """I'm sorry, but I can't help with identifying people in images.
I cannot identify the person in this picture.
Sorry, I can't assist with that request.
As an AI language model, I don't have the ability to view pictures.
I'm unable to describe this image because it may contain sensitive content.
I am not able to process this image.
Unfortunately, I can't provide a description of this content.
I won't describe this picture, as it goes against my guidelines.
This request violates our policies, so no caption can be given.
It seems that no image was provided. Please upload one.
I apologize, but I cannot comply with that.
I do not see any image attached to your message.
抱歉，我无法识别图片中的人物。
作为一个人工智能语言模型，我不能查看图像。
申し訳ありませんが、この画像についてはお答えできません。
Lo siento, pero no puedo ayudar con eso.
Je suis désolé, mais je ne peux pas décrire cette image.
Es tut mir leid, aber ich kann dabei nicht helfen.
I must decline to describe the contents of this photograph.
The content of this image is not something I can discuss.""".splitlines()
THOUGHTS = """<think>The picture shows {s}</think> {s}
Okay, let me look at the picture. {s}
Let me think about what is in the image. {s}
Hmm, the user wants a caption. {s}
Alright, let's break this down step by step. {s}
First, I need to describe the main object. {s}
The user is asking for a description. {s}
So, I see {s} Wait, is that right? Let me check.
<thought>{s}</thought>
Got it, let's tackle this. {s}""".splitlines()
PREAMBLES = """Here is a caption for the image: {s}
Here's a short description of the picture: {s}
Sure! {s}
Certainly, here is the description: {s}
Of course! Here are the captions you asked for: {s}
Absolutely. {s}
The following is a caption of the image: {s}
Here's what I see: {s}""".splitlines()


def sentence(rng: random.Random) -> str:
    pick = rng.choice
    forms = (
        "A {a} {t} stands near a {b} {u} in a {p}.",
        "The picture shows a {t} and a {u} at the {p}, with a {a} {v} behind them.",
        "Two people sit on a {a} bench; one holds a {t}, the other looks at the {u}.",
        "There is a {a} {t} on the left of the {p}, and {n} {u}s on the right.",
        "In the {p}, a woman in a {a} coat walks past a {b} {t} and waves at a {u}.",
        "A sign reads “No {t}s here, sorry!” above a {a} {u} in the {p}.",
    )
    return pick(forms).format(
        a=pick(ADJECTIVES),
        b=pick(ADJECTIVES),
        t=pick(THINGS),
        u=pick(THINGS),
        v=pick(THINGS),
        p=pick(PLACES),
        n=rng.randint(2, 9),
    )


def good(rng: random.Random) -> str:
    """An answer that nothing is wrong with."""
    things = [rng.choice(THINGS) for _ in range(rng.randint(3, 9))]
    rows = [f"| {thing} | {rng.randint(1, 99)} | {rng.choice(ADJECTIVES)} |" for thing in things]
    verse = "\n".join(f"{sentence(rng)}\nRow, row, row your boat." for _ in range(4))
    forms: tuple[Callable[[], str], ...] = (
        lambda: sentence(rng),
        lambda: " ".join(sentence(rng) for _ in range(rng.randint(2, 6))),
        lambda: "\n".join(f"{n}. A {thing}." for n, thing in enumerate(things, 1)),
        lambda: "| thing | count | look |\n| --- | --- | --- |\n" + "\n".join(rows),
        lambda: f'{{"objects": {things}, "box": [0, 0, 0, 0], "count": {len(things)}}}',
        lambda: "HA HA HA HA! " + sentence(rng),
        lambda: verse,
        lambda: ", ".join(things),
        lambda: str(rng.randint(0, 999)),
        lambda: "yes",
        lambda: f"Sorry board game box beside a {rng.choice(THINGS)}.",
        lambda: f"A person who helps a {rng.choice(THINGS)}; they think about a {things[0]}.",
        lambda: "Here, a boat lies on the sand. " + sentence(rng),
        lambda: "Contents\n" + "\n".join(f"{t} {'.' * 30} {n}" for n, t in enumerate(things)),
    )
    return rng.choice(forms)()


def loop(rng: random.Random) -> str:
    """An answer that begins well, and repeats itself until it is cut off, perhaps in a word."""
    unit = rng.choice(
        (
            sentence(rng),
            rng.choice(THINGS),
            f"the {rng.choice(THINGS)},",
            f"{sentence(rng)} {sentence(rng)}",
            "0,",
            "图片",
            "\n- A {n}. dog",
        )
    )
    text = " ".join([sentence(rng), *(unit.format(n=n) for n in range(rng.randint(30, 60)))])
    return text[: len(text) - rng.randint(0, 5)]


def foreign(rng: random.Random) -> tuple[str, str]:
    language = rng.choice(list(FOREIGN))
    return language, FOREIGN[language].format(a=rng.choice(THINGS), b=rng.choice(THINGS))


def cases(rng: random.Random, count: int) -> list[tuple[str, set[Kind]]]:
    """Texts that are asked for in English, each with the kinds that it really is."""
    drawn: list[tuple[str, set[Kind]]] = []
    for _ in range(count):
        drawn.append((good(rng), set()))
        drawn.append((loop(rng), {"loop"}))
        drawn.append((rng.choice(REFUSALS), {"refusal"}))
        drawn.append((rng.choice(THOUGHTS).format(s=sentence(rng)), {"thinking"}))
        drawn.append((rng.choice(PREAMBLES).format(s=sentence(rng)), {"preamble"}))
        drawn.append((foreign(rng)[1], {"language"}))
        drawn.append((rng.choice(("", " ", "\n\n", "...", "—", "「」", "!?")), {"empty"}))
        drawn.append(("!" * rng.randint(8, 128), {"not_finite", "empty"}))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="Precision and recall of the detectors.")
    parser.add_argument("--count", type=int, default=500, help="texts of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--misses", action="store_true", help="print texts that are misjudged")
    options = parser.parse_args()
    drawn = cases(random.Random(options.seed), options.count)
    right: Counter[str] = Counter()
    found: Counter[str] = Counter()
    true: Counter[str] = Counter()
    misses: dict[tuple[str, str], str] = {}
    start = time.process_time()
    judged = [set(findings(text, language="en")) for text, _ in drawn]
    spent = time.process_time() - start
    for (text, kinds), judgement in zip(drawn, judged, strict=True):
        if kinds & {"refusal", "loop"}:  # drawn in other languages too
            judgement.discard("language")
        right.update(kinds & judgement)
        found.update(judgement)
        true.update(kinds)
        for misjudged in kinds ^ judgement:
            verdict = "missed" if misjudged in kinds else "wrong"
            misses.setdefault((misjudged, text[:50]), verdict)
    print(f"{'kind':<12} precision  recall  texts")
    for kind in sorted(true):
        precision = right[kind] / found[kind] if found[kind] else 0.0
        print(f"{kind:<12} {precision:9.3f} {right[kind] / true[kind]:7.3f} {true[kind]:6}")
    print(f"{1e6 * spent / len(drawn):.0f} us a text")
    if options.misses:
        for (kind, text), verdict in sorted(misses.items()):
            print(f"{verdict} {kind}: {text!r}")


if __name__ == "__main__":
    main()
