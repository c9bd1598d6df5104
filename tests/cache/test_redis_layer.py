"""The Redis layer, against a server that the test starts, fills and kills."""

from __future__ import annotations

import pyarrow as pa
import pytest
from cache_entries import MB, keys, values
from redis_process import Server

from tokzip_core.cache import CacheError, GuardedLayer, LayeredCache, MemoryLayer
from tokzip_core.cache.redis import PREFIX, RedisLayer


def test_entries_outlive_the_client_and_are_shared(redis_server: Server) -> None:
    first, second = redis_server.layer(), redis_server.layer()
    first.put_many(keys(*range(1000)), values(*range(1000)))
    first.close()
    assert second.get_many(keys(*range(1000))).equals(values(*range(1000)))
    assert redis_server.client.dbsize() == 1000
    assert all(name.startswith(PREFIX) for name in redis_server.client.scan_iter())
    second.close()


def test_damaged_and_foreign_entries_are_misses_removed_and_counted(redis_server: Server) -> None:
    layer = redis_server.layer()
    layer.put_many(keys(*range(5)), values(*range(5)))
    names = [PREFIX + k for k in keys(*range(5)).to_pylist()]
    client = redis_server.client
    client.setrange(names[1], 500, b"\0\1\2\3")
    client.set(names[2], client.get(names[3]))  # whole, but another key's
    client.set(names[4], b"short")
    got = layer.get_many(keys(*range(5)))
    assert got.is_null().to_pylist() == [False, True, True, False, True]
    assert layer.counters["corrupt"] == 3
    assert [client.exists(n) for n in names] == [1, 0, 0, 1, 0]
    layer.close()


def test_entries_expire_where_the_url_says_so(redis_server: Server) -> None:
    layer = redis_server.layer("?ttl=600")
    layer.put_many(keys(1, 2), values(1, 2))
    assert 0 < redis_server.client.ttl(PREFIX + keys(1)[0].as_py()) <= 600
    assert layer.get_many(keys(1, 2)).equals(values(1, 2))
    layer.close()


def test_a_full_server_is_still_read(redis_server: Server) -> None:
    layer = redis_server.layer()
    layer.put_many(keys(1), values(1))
    redis_server.client.config_set("maxmemory", 1)
    layer.put_many(keys(2), values(2))
    assert (layer.counters["puts"], layer.counters["refused"]) == (1, 1)
    assert layer.get_many(keys(1, 2)).is_valid().to_pylist() == [True, False]
    layer.close()


def test_a_server_with_a_bound_evicts(redis_server: Server) -> None:
    redis_server.client.config_set("maxmemory", 8 * MB)
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    layer = redis_server.layer()
    for n in range(0, 8000, 500):
        some = range(n, n + 500)
        layer.put_many(keys(*some), values(*some))
    got = layer.get_many(keys(*range(8000))).to_pylist()
    assert 0 < sum(v is not None for v in got) < 8000
    assert all(v in (None, w) for v, w in zip(got, values(*range(8000)).to_pylist(), strict=True))
    layer.close()


def test_a_server_killed_in_the_middle_is_left_alone_and_taken_up_again(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = GuardedLayer(redis_server.layer(), seconds=600, pause=0.01)
    stack = LayeredCache([MemoryLayer(10 * MB), guarded])
    for n in range(0, 100, 10):
        if n == 50:
            redis_server.kill()
        some = range(n, n + 10)
        stack.put_many(keys(*some), values(*some))
        assert stack.get_many(keys(*some)).equals(values(*some)), "the memory layer goes on"
        assert stack.get_many(keys(1000)).null_count == 1
    events = stack.events()
    assert events["failed.redis"] >= 1
    assert "failed.redis" not in stack.events(), "told once"
    assert sum("cache layer redis fails" in r.message for r in caplog.records) == 1

    redis_server.start()
    for pause in guarded._pauses.values():
        pause.until = 0.0  # it is over
    stack.put_many(keys(7), values(7))
    assert guarded.get_many(keys(7)).equals(values(7))
    stack.close()


def test_no_server_at_all_is_misses(redis_server: Server) -> None:
    redis_server.kill()
    stack = LayeredCache([redis_server.layer()])
    stack.put_many(keys(1), values(1))
    assert stack.get_many(keys(1, 2)).null_count == 2
    assert stack.events() == {"failed.redis": 2}, "once to write, once to read"
    stack.close()


@pytest.mark.parametrize("url", ["redis://host:port/0", "redis://host:1/0?ttl=soon", "redis://host:1/0?ttl=0"])
def test_a_url_that_means_nothing_is_an_error(url: str) -> None:
    with pytest.raises(CacheError, match="redis cache at host"):
        RedisLayer(url)


def test_empty_and_no_values(redis_server: Server) -> None:
    layer = redis_server.layer()
    layer.put_many(keys(1), pa.array([b""], pa.binary()))
    assert layer.get_many(keys(1)).to_pylist() == [b""]
    layer.close()


def test_a_socket_keeps_its_path() -> None:
    layer = RedisLayer("unix:///run/redis.sock?ttl=60&db=2")
    told = layer._client.connection_pool.connection_kwargs
    assert (told["path"], told["db"], layer.ttl) == ("/run/redis.sock", 2, 60)
    layer.close()
