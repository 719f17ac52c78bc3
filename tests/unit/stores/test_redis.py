"""What the store in Redis adds to the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from tests.support.redis import RedisServer, redis_server
from tests.support.servers import free_port
from tests.unit.net.test_client_tls import LOOPBACK, Authority
from tests.unit.stores.test_contract import key, opened
from toolway.errors import ConfigError, StoreError
from toolway.stores import redis as module


def place(name: str) -> str:
    return f"toolway:{key(name).digest}"


async def test_keys_have_a_name_of_their_own_and_an_end(redis: RedisServer):
    async with opened(redis.url, ttl=500) as store, Redis.from_url(redis.url) as raw:
        await store.put(key("a"), {})
        await store.add(key("b"), {}, ttl=5000)
        shares = {f"toolway:me:{part}" for part in ("sizes", "ages", "ends")}
        assert {name.decode() for name in await raw.keys()} == {place("a"), place("b"), *shares}
        for name in shares:
            assert 4900 < await raw.ttl(name) <= 5000
        assert 400 < await raw.ttl(place("a")) <= 500
        assert 4900 < await raw.ttl(place("b")) <= 5000


async def test_each_owner_has_a_share_in_which_the_oldest_go_first(redis: RedisServer):
    async with opened(redis.url, max_bytes=50_000) as store, Redis.from_url(redis.url) as raw:
        await store.put(key("first", "alice"), {"text": "x" * 10_000})
        await store.put(key("over"), {"text": "x" * 10_000}, ttl=0.001)
        for n in (*range(9), 3):
            await store.put(key(f"k{n}"), {"text": "x" * 10_000})
        kept = [n for n in range(9) if await store.get(key(f"k{n}"))]
        assert kept == [3, 6, 7, 8]
        assert await store.get(key("first", "alice"))
        await store.delete(key("k6"))
        await store.put(key("k7"), {})
        sizes = {name.decode(): int(size) for name, size in (await raw.hgetall("toolway:me:sizes")).items()}
        assert sizes.pop("all") == sum(sizes.values())
        assert set(sizes) == {key(f"k{n}").digest for n in (3, 7, 8)}


async def test_each_database_is_a_store_of_its_own(redis: RedisServer):
    other = redis.url.removesuffix("/0") + "/7"
    async with opened(redis.url) as one, opened(other) as two:
        await one.put(key("k"), {})
        assert await two.get(key("k")) is None


async def test_a_unix_socket_will_do(redis: RedisServer):
    async with opened(f"unix://{redis.socket}?db=3") as store:
        await store.put(key("k"), {"n": 1})
        assert await store.get(key("k")) == {"n": 1}


async def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path):
    authority = Authority(tmp_path)
    identity = authority.identity(LOOPBACK)
    files = [
        ("--tls-cert-file", identity),
        ("--tls-key-file", identity),
        ("--tls-ca-cert-file", authority.bundle),
    ]
    port = free_port()
    options = [part for option, path in files for part in (option, str(path))]
    with redis_server("--tls-port", str(port), "--tls-auth-clients", "no", *options):
        url = f"rediss://127.0.0.1:{port}/0"
        async with opened(f"{url}?ssl_ca_certs={authority.bundle}") as store:
            await store.put(key("k"), {"n": 1})
            assert await store.get(key("k")) == {"n": 1}
        with pytest.raises(ConfigError, match=r"(?i)certificate"):
            async with opened(url):
                pass


async def test_a_password_opens_and_a_wrong_one_is_told_without_saying_it():
    with redis_server("--user", "me", "on", ">pa/ss@word", "~toolway:*", "+@all") as server:
        place = server.url.removeprefix("redis://")
        async with opened(f"redis://me:pa%2Fss%40word@{place}") as store:
            await store.put(key("k"), {"n": 1})
            assert await store.get(key("k")) == {"n": 1}
        with pytest.raises(ConfigError, match=r"TOOLWAY_STORE.*refuses the user name or password") as caught:
            async with opened(f"redis://me:hunter2@{place}"):
                pass
        assert "hunter2" not in caught.value.message


async def test_a_server_that_is_not_there_at_the_start_is_told():
    with pytest.raises(ConfigError, match=r"TOOLWAY_STORE: redis://.* cannot be used: .*[^.]\.$"):
        async with opened(f"redis://127.0.0.1:{free_port()}/0"):
            pass


async def test_a_server_that_comes_back_is_used_again(redis: RedisServer):
    async with opened(redis.url) as store:
        await store.put(key("k"), {"n": 1})
        redis.stop()
        redis.start()
        await store.put(key("k"), {"n": 2})
        assert await store.get(key("k")) == {"n": 2}
        redis.stop()
        redis.start()
        for _ in range(3):  # turns of the loop, in which it hears that the connection is closed
            await anyio.lowlevel.checkpoint()
        assert await store.add(key("k"), {"n": 3})


async def test_a_server_that_is_gone_is_a_miss_logged_once_and_nothing_is_certain(redis: RedisServer, caplog):
    async with opened(redis.url) as store:
        await store.put(key("k"), {"n": 1})
        redis.stop()
        for _ in range(20):
            await store.put(key("k"), {"n": 2})
            assert await store.get(key("k")) is None
        with pytest.raises(StoreError):
            await store.add(key("k"), {})
        with pytest.raises(StoreError):
            await store.delete(key("k"))
        with pytest.raises(StoreError):
            await store.get(key("k"), certain=True)
        with pytest.raises(StoreError):
            await store.put(key("k"), {}, certain=True)
        assert not await store.is_ready()
    assert caplog.text.count("the store failed") == 1


async def test_a_server_that_is_silent_is_left_alone_for_a_moment(redis: RedisServer, monkeypatch, caplog):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(module, "REST_SECONDS", 1000)
    async with opened(redis.url) as store:
        redis.freeze()
        assert await store.get(key("k")) is None
        redis.thaw()
        with pytest.raises(StoreError) as caught:
            await store.add(key("k"), {})
        assert "left alone" in str(caught.value.__cause__)
        monkeypatch.setattr(store._entries._rest, "_until", 0)
        assert await store.add(key("k"), {})
    assert caplog.text.count("the store failed") == 1


async def test_who_stops_waiting_leaves_no_answer_to_the_next(redis: RedisServer, monkeypatch):
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    async with opened(redis.url) as store:
        await store.put(key("one"), {"n": 1})
        await store.put(key("two"), {"n": 2})
        redis.freeze()
        async with anyio.create_task_group() as group:
            group.start_soon(store.get, key("one"))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            redis.thaw()
        assert await store.get(key("two")) == {"n": 2}


async def test_a_full_server_keeps_nothing_and_says_so():
    with redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with opened(server.url) as store:
            await store.put(key("k"), {"n": 1})
            assert await store.get(key("k")) is None
            with pytest.raises(StoreError):
                await store.add(key("k"), {})
            assert not await store.is_ready()


@pytest.mark.parametrize("foreign", ["no JSON", "[1]"])
async def test_what_others_wrote_under_our_keys_is_a_miss(redis: RedisServer, foreign: str):
    async with opened(redis.url) as store, Redis.from_url(redis.url) as raw:
        await raw.set(place("k"), foreign)
        assert await store.get(key("k")) is None


async def test_more_tasks_than_connections_take_turns(redis: RedisServer, monkeypatch):
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    # Who waits longer than usual for its turn gives up, and on a busy machine the last of a hundred may.
    async with opened(f"{redis.url}?timeout=100&socket_timeout=100&socket_connect_timeout=100") as store:
        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(store.put, key(f"k{n}"), {"n": n})
        assert [await store.get(key(f"k{n}")) for n in range(100)] == [{"n": n} for n in range(100)]


async def test_without_its_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "toolway.stores.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"-m pip install 'redis>=6,<9'"):
        async with opened("redis://127.0.0.1"):
            pass


def test_who_does_not_use_it_does_not_load_it():
    subprocess.run(
        [sys.executable, "-c", "import sys, toolway.app; sys.exit('redis' in sys.modules)"], check=True
    )
