"""The fifty texts that engines are compared on."""

from __future__ import annotations

from typing import Final

_SHORT: Final = [
    *("a", "Hello", "vector", "42", "?", "The end.", "embedding server", "where is my index"),
    *("New York", "don't", "C++", "naïve café"),
]
_SENTENCES: Final = [
    "The capital of France is Paris, and it has been for most of a thousand years.",
    "How do I find out which process holds the memory of my graphics card?",
    "A retriever that asks with the wrong prompt finds the wrong passages.",
    "Water boils at a lower temperature on a mountain because the air presses less.",
    "She said: 'I will not go', and went.",
    "Two roads diverged; I took the one with the better surface.",
    "In 1969 two people walked on the Moon for about two and a half hours.",
    "Das Wetter ist heute schön, morgen soll es regnen.",
    "La bibliothèque ferme à dix-huit heures le samedi.",
    "El tren de las ocho llega siempre a las ocho y cuarto.",
    "Текст на русском языке для проверки токенизатора.",
    "هذا نص عربي قصير للاختبار.",
]
_CHINESE: Final = [
    "向量数据库用来存储和检索高维向量。",
    "今天天气很好，我们去公园散步吧。",
    "如何选择合适的嵌入模型？",
    "机器学习模型需要大量的数据进行训练，然后才能用于预测。",
    "日本語の文章も少し混ぜておきます。",
    "한국어 문장도 하나 넣습니다.",
]
_CODE: Final = [
    "def dot(a, b):\n    return sum(x * y for x, y in zip(a, b, strict=True))",
    "SELECT id, name FROM users WHERE age > 30 ORDER BY name LIMIT 10;",
    "for (int i = 0; i < n; ++i) { total += values[i]; }",
    '{"model": "x", "input": ["a", "b"], "dimensions": 32}',
    "\tindented\twith\ttabs\n\n\nand blank lines\n",
    "#!/usr/bin/env bash\nset -euo pipefail\n",
]
_ODD: Final = [
    *("🙂", "👩\u200d👩\u200d👧\u200d👦 family 🚀🚀🚀", "e\u0301 vs \u00e9", "ﬁ ligature ½ ²"),
    *("\u202eright to left\u202c", "<|endoftext|>", "Instruct: nothing\nQuery:all of it"),
    *("   leading and trailing   ", "a" * 300),
]
_LONG: Final = [
    " ".join(f"Sentence number {i} says that {i} is not {i + 1}." for i in range(20)),
    " ".join(f"第{i}句话。" for i in range(120)),
    "lorem ipsum dolor sit amet " * 60,
    # About two thousand tokens of the tiny tokenizer, which knows few words.
    " ".join(f"word{i}" for i in range(300)),
]
BLANK: Final = " \n\t "

TEXTS: Final = [*_SHORT, *_SENTENCES, *_CHINESE, *_CODE, *_ODD, *_LONG, BLANK]
