"""Search across languages with ``Embedder`` and NumPy, without a framework.

No text is translated. Texts with the same meaning have similar vectors in all languages, so one
index is sufficient. The small model of emberd/demo prefers texts in the language of the question:
for a question about dough in Chinese, the Chinese passage about bees comes first.
"""

from emberd import Embedder

PASSAGES = [
    "The Baltic Sea has little salt, because many rivers flow into it.",
    "Sauerteig geht langsam: wilde Hefe braucht zwölf Stunden bei Zimmertemperatur.",
    "Marie Curie es la única persona con premios Nobel en dos ciencias distintas.",
    "蜜蜂用舞蹈告诉同伴花在哪个方向，离蜂巢有多远。",
    "Un verrou est périmé quand le processus qui le tenait n'existe plus.",
    "Метро в Москве открылось в 1935 году.",
]
QUESTIONS = [
    "Como as abelhas indicam onde estão as flores?",
    "У кого две Нобелевские премии?",
    "Perché il Baltico è così poco salato?",
    "How long does bread dough take to rise?",
    "¿Cuándo abrió el metro de la capital rusa?",
    "如果持有锁的进程已经退出怎么办？",
]

embedder = Embedder("emberd/demo")
passages = embedder.embed_documents(PASSAGES)
questions = embedder.embed_queries(QUESTIONS)

# Vectors have norm one, so a product is a cosine.
for question, cosines in zip(QUESTIONS, questions @ passages.T, strict=True):
    best = cosines.argmax()
    print(f"{question}\n  {cosines[best]:.3f}  {PASSAGES[best]}")
