"""Texts in many languages and scripts, with which two tokenizers are compared."""

import unicodedata
from collections import defaultdict
from functools import cache

SENTENCES = (
    "The quick brown fox jumps over the lazy dog; it's 3.5 km away (or 1,200 yards)!",
    "Zwei große Hunde laufen über den Strand und spielen mit einem Ball.",
    "L'été, un garçon mange une pêche près de la forêt; où est-il allé ?",
    "¿Dónde está el niño? ¡Allí, en el jardín, con su perro pequeño!",
    "Šílený kůň běží přes žluté pole, říká Přemysl.",
    "Zażółć gęślą jaźń w świetle księżyca.",
    "Öt szép szűzlány őrült írót nyúz.",
    "Pijamalı hasta yağız şoföre çabucak güvendi; Iğdır, İstanbul.",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng, rồi ngủ dưới gốc cây.",
    "Быстрая коричневая лиса прыгает через ленивую собаку у реки.",
    "Щастя їжака - це ґанок і яблуко.",
    "Η γρήγορη αλεπού πηδά πάνω από το τεμπέλικο σκυλί.",
    "敏捷的棕色狐狸跳过懒狗，落在红色的沙发上。",
    "素早い茶色の狐がのろまな犬を飛び越える。パンを「食べる」",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول، ثم ينام؟",
    "اَلْكَلْبُ يَأْكُلُ الطَّعَامَ فِي الْبَيْتِ",
    "روباه قهوه‌ای سریع از روی سگ تنبل می‌پرد.",
    "تیز بھورا لومڑ سست کتے کے اوپر سے کودتا ہے۔",
    "השועל החום המהיר קופץ מעל הכלב העצלן; שָׁלוֹם עוֹלָם",
    "तेज भूरी लोमड़ी आलसी कुत्ते पर कूदती है।",
    "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়।",
    "ਤੇਜ਼ ਭੂਰੀ ਲੂੰਬੜੀ ਆਲਸੀ ਕੁੱਤੇ ਉੱਤੇ ਛਾਲ ਮਾਰਦੀ ਹੈ।",
    "ઝડપી ભૂરું શિયાળ આળસુ કૂતરા પર કૂદે છે.",
    "விரைவான பழுப்பு நரி சோம்பேறி நாய் மீது குதிக்கிறது.",
    "త్వరిత గోధుమ నక్క సోమరి కుక్క మీదుగా దూకుతుంది.",
    "ವೇಗದ ಕಂದು ನರಿ ಸೋಮಾರಿ ನಾಯಿಯ ಮೇಲೆ ಹಾರುತ್ತದೆ.",
    "വേഗത്തിലുള്ള തവിട്ട് കുറുക്കൻ മടിയനായ നായയ്ക്ക് മുകളിലൂടെ ചാടുന്നു.",
    "වේගවත් දුඹුරු නරියා කම්මැලි බල්ලා මතින් පනී.",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจในน้ำ",
    "ໝາຈອກສີນ້ຳຕານໂດດຂ້າມໝາຂີ້ຄ້ານ",
    "កញ្ជ្រោងពណ៌ត្នោតលោតពីលើឆ្កែខ្ជិល",
    "မြန်ဆန်သောအညိုရောင်မြေခွေးသည် ခွေးပျင်းကိုခုန်ကျော်သည်။",
    "བོད་སྐད་ཡིག་གི་ཚིག་གྲུབ།",
    "სწრაფი ყავისფერი მელა ახტება ზარმაც ძაღლს.",
    "Արագ շագանակագույն աղվեսը ցատկում է ծույլ շան վրայով։",
    "ፈጣኑ ቡናማ ቀበሮ በሰነፉ ውሻ ላይ ይዘላል።",
    "ޝަލޮމް ދިވެހި ބަސް",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᐃᓄᒃᑎᑐᑦ ⵜⴰⵎⴰⵣⵉⵖⵜ ߒߞߏ ᠮᠣᠩᠭᠣᠯ",
    "½ litre, ① first, ﬁne, ™ “quotes” — Ⅳ, ㎏, １２３ ＡＢＣ, e² 😀 👍🏽",
    "  two   spaces,\ttab, no\u00a0break, zero\u200bwidth, soft\u00adhyphen ",
)


@cache
def script_texts() -> dict[str, str]:
    """Return a text of nonsense words for every script of Unicode, by the script's name in the names of its letters."""
    letters: dict[str, list[str]] = defaultdict(list)
    for code in range(0x41, 0x20000):
        letter = chr(code)
        if unicodedata.category(letter) in {"Lu", "Ll", "Lo"} and unicodedata.normalize("NFKC", letter) == letter:
            letters[unicodedata.name(letter, "").split(" ")[0]].append(letter)
    return {name: _words(found) for name, found in sorted(letters.items()) if name and len(found) >= 8}


def _words(letters: list[str]) -> str:
    """Return up to 60 letters, evenly spread over a script, in words of one to five."""
    chosen = letters[:: max(1, len(letters) // 60)][:60]
    words: list[str] = []
    start = 0
    while start < len(chosen):
        length = 1 + len(words) % 5
        words.append("".join(chosen[start : start + length]))
        start += length
    return " ".join(words)


def sample_texts() -> list[str]:
    """Return real sentences in some forty languages, and nonsense in every script of Unicode."""
    return [*SENTENCES, *script_texts().values()]
