"""What a model folder says about how a text becomes a vector: modules, pooling and prompts.

The files are those of sentence-transformers: ``modules.json``, the ``config.json`` of each module,
``sentence_bert_config.json`` and ``config_sentence_transformers.json``. The formats and the rules
are those of sentence-transformers 5.0 to 6.2, tried with 6.2.0. The library itself is not needed:
the files are JSON.

The servers of emberd make one vector of the token states and scale it to length one.
``unservable`` says what a folder asks for that such a server does differently; ``prompts_of`` says
what comes before each text.
"""

from emberd.pipeline.files import PROMPTS_FILE, Problem, open_regular, text_of
from emberd.pipeline.modules import OTHER_SERVER, names_pooling, unservable
from emberd.pipeline.prompts import Prompts, prompts_of, truncate_dim, unused_prompts

__all__ = [
    "OTHER_SERVER",
    "PROMPTS_FILE",
    "Problem",
    "Prompts",
    "names_pooling",
    "open_regular",
    "prompts_of",
    "text_of",
    "truncate_dim",
    "unservable",
    "unused_prompts",
]
