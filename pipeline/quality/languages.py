"""Guesses the language of a text: by its script, and for Latin letters by its function words."""

import re
from collections import Counter

# The words that tell these languages from one another in ordinary prose.
_FUNCTION_WORDS = {
    "en": "the a an of and is are in on with to at by for it its this that there from has his her",
    "de": "der die das und ist ein eine einem einen einer den dem des im mit auf von zu nicht sich",
    "fr": "le la les un une des et est dans sur avec du au aux qui que pour il elle ce cette sont",
    "es": "el la los las un una unos y es en con de del al por para que se su hay está sobre como",
    "it": "il lo la gli un una e è in con di del della dei delle al che per si sono su nel nella",
    "pt": "o a os as um uma e é em com de do da dos das no na ao que por para se está são sobre",
    "nl": "de het een en is in op met van aan te zijn voor dat die naar door er wordt niet bij",
    "sv": "en ett och är i på med av som det den att till för från har sig inte om de vid",
    "pl": "i w z na jest się do nie to że o jako po za przy oraz są ten ta który która przez",
    "tr": "bir ve bu ile için de da olan üzerinde içinde gibi çok var daha olarak her o",
    "vi": "một và là của trong với có được trên các người những cho này đang bên từ đó",
    "id": "yang dan di dengan sebuah dari ini itu pada untuk adalah ke dalam ada seorang oleh",
}
_WORDS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
# A script is tried before those below it: Japanese has kana beside the ideographs of Chinese.
_SCRIPTS = {
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af\u1100-\u11ff]",
    "zh": r"[\u3400-\u4dbf\u4e00-\u9fff]",
    "ru": r"[\u0400-\u04ff]",
    "ar": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]",
    "hi": r"[\u0900-\u097f]",
    "th": r"[\u0e00-\u0e7f]",
    "el": r"[\u0370-\u03ff]",
}
_SCRIPT_PATTERNS = {language: re.compile(pattern) for language, pattern in _SCRIPTS.items()}
_MIN_WORDS = 2  # function words of a language, before it is named
_SCRIPT_SHARE = 0.3  # of the letters
_KANA_SHARE = 0.05


def language_of(text: str) -> str | None:
    """Returns the language of a text as one of schemas.job_alarms.LANGUAGES; None if unknown.

    A short text, a list of names and a mix of languages cannot be told. Languages of one script are
    told apart for Latin letters only: Ukrainian counts as "ru".
    """
    letters = sum(character.isalpha() for character in text)
    for language, pattern in _SCRIPT_PATTERNS.items():
        share = _KANA_SHARE if language == "ja" else _SCRIPT_SHARE
        if letters and len(pattern.findall(text)) >= share * letters:
            return language
    words = Counter(re.findall(r"[^\W\d_]+", text.casefold()))
    hits = Counter(
        {
            language: sum(count for word, count in words.items() if word in function_words)
            for language, function_words in _WORDS.items()
        }
    )
    (best, most), (_, second) = hits.most_common(2)
    return best if most >= _MIN_WORDS and most > 1.5 * second else None
