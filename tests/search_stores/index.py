"""Where an index of Redis or Elasticsearch keeps the identity of the vectors in it."""

from __future__ import annotations

import itertools
from typing import Final

from elasticsearch import BadRequestError, Elasticsearch
from elasticsearch.helpers import BulkIndexError
from redis import Redis
from redisvl.exceptions import RedisSearchError

KEY: Final = "emberd"
_NUMBERS: Final = itertools.count()


class Index:
    """An index that does not exist yet; each has a different name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"passages{next(_NUMBERS)}"


class RedisIndex(Index):
    """The identity is in a key beside it."""

    refuses_query = (RedisSearchError, "does not match index's expected size")

    def save_identity(self, identity: str) -> None:
        with Redis.from_url(self.url) as client:
            client.set(f"{KEY}:{self.name}", identity)

    def load_identity(self) -> str:
        with Redis.from_url(self.url, decode_responses=True) as client:
            return str(client.get(f"{KEY}:{self.name}"))


class ElasticsearchIndex(Index):
    """The identity is in the metadata of the mapping."""

    refuses_query = (BadRequestError, "different number of dimensions")
    refuses_texts = (BulkIndexError, "failed to index")

    def save_identity(self, identity: str) -> None:
        with Elasticsearch(self.url) as client:
            client.indices.put_mapping(index=self.name, meta={KEY: identity})

    def load_identity(self) -> str:
        with Elasticsearch(self.url) as client:
            mapping = client.indices.get_mapping(index=self.name)[self.name]["mappings"]
        return str(mapping["_meta"][KEY])
