"""The console is a page of the wheel: off by default, public without a secret, and asks nothing that is not documented.

What its script says and reads is run by node where there is one; test_console_browser.py opens the page itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from click.testing import CliRunner
from package_kit import unpacked

from openclaw_gateway.cli import main
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, served, serving

ROOT = Path(__file__).resolve().parents[2]
CSP = "content-security-policy"
PAGE = files("openclaw_plugins.console").joinpath("page")
BESIDE = {
    "app.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


def with_console(directory: Path, edit: dict[str, Any] | None = None, **settings: Any) -> Gateway:
    return build(configuration(directory, edit={"plugins.console": {"use": "console", **settings}, **(edit or {})}))


async def asked(url: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    async with aiohttp.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def test_it_is_off_until_it_is_asked_for(tmp_path: Path) -> None:
    gateway = build(configuration(tmp_path))
    assert [route.path for route in gateway.routes if "console" in route.path] == []
    async with serving(gateway) as url:
        status, headers, _ = await asked(f"{url}/console")
    assert (status, headers["content-type"]) == (404, "application/problem+json")


async def test_a_reload_turns_it_on(tmp_path: Path) -> None:
    async with served(build(configuration(tmp_path))) as server:
        url = server.gateway.url
        assert (await asked(f"{url}/console"))[0] == 404
        with configuration(tmp_path).open("a") as file:
            file.write("[plugins.console]\n")
        await server.front.reload()
        assert (await asked(f"{url}/console"))[0] == 200


async def test_page_and_files_are_served_to_everybody_under_a_strict_policy(tmp_path: Path) -> None:
    async with serving(with_console(tmp_path)) as url:
        for path, media_type in {"": "text/html; charset=utf-8", **{f"/{k}": v for k, v in BESIDE.items()}}.items():
            status, headers, body = await asked(f"{url}/console{path}")
            assert (status, headers["content-type"]) == (200, media_type), path
            policies = [dict(p.strip().split(" ", 1) for p in v.split(";")) for v in headers.getall(CSP)]
            assert policies == [POLICY], path  # the step adds none of its own beside it
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert not {"set-cookie", "www-authenticate", "ratelimit", "access-control-allow-origin"} & {
                name.lower() for name in headers
            }
            status, head, nothing = await asked(f"{url}/console{path}", "HEAD")
            assert (status, nothing, head["content-length"]) == (200, b"", str(len(body))), path
            assert (await asked(f"{url}/console{path}", "POST"))[0] == 405


async def test_a_browser_keeps_what_has_not_changed(tmp_path: Path) -> None:
    edit = {"gateway.pipeline": ["request_id", "compression", "security_headers", "auth", "tier", "ratelimit", "quota",
                                 "concurrency"], "plugins.compression.min_size": "100B"}  # fmt: skip
    for directory, edited in (("plain", None), ("compressed", edit)):
        async with serving(with_console(tmp_path / directory, edited)) as url:
            for path in ("", "/app.js"):
                _, headers, _ = await asked(f"{url}/console{path}")
                tag = headers["etag"]
                assert headers["cache-control"] == "no-cache"
                assert tag.startswith("W/") is (directory == "compressed")
                for known in (tag, f'"other", {tag}', "*"):
                    status, again, body = await asked(f"{url}/console{path}", **{"if-none-match": known})
                    assert (status, body) == (304, b"") and CSP in again
                assert (await asked(f"{url}/console{path}", **{"if-none-match": '"other"'}))[0] == 200


@pytest.mark.parametrize(("path", "root"), [("/console", "./"), ("/ops/gateway/console", "../../")])
async def test_links_are_relative_so_that_a_proxy_may_serve_it_below_a_path(
    tmp_path: Path, path: str, root: str
) -> None:
    async with serving(with_console(tmp_path, path=path)) as url:
        _, _, body = await asked(url + path)
        page = body.decode()
        assert f'data-root="{root}"' in page and "{name}" not in page
        links = re.findall(r'(?:src|href)="([^"#]+)"', page)
        assert len(links) == 3
        for link in links:
            assert link.startswith("console/")
            assert (await asked(f"{url}{path.rpartition('/')[0]}/{link}"))[0] == 200
        # From here the links would lead below the page: sent to where they are right, on any proxy's path.
        status, headers, _ = await asked(f"{url}{path}/")
        assert (status, headers["location"]) == (308, "../console")


@pytest.mark.parametrize("path", ["console", "/", "/console/", "/con sole", "/{name}", "//a", "/../a", '/a"b', ""])
def test_a_path_that_is_none_stops_the_start(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.console\.path"):
        with_console(tmp_path, path=path)


def test_a_path_of_another_route_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/v1/models"):
        with_console(tmp_path, path="/v1/models")


def test_check_and_the_proof_are_good_with_it(tmp_path: Path) -> None:
    config = str(configuration(tmp_path, edit={"plugins.console": {"use": "console"}}))
    assert CliRunner().invoke(main, ["check", "--config", config]).exit_code == 0
    proof = CliRunner().invoke(main, ["routes", "--proof", "--config", config])
    assert proof.exit_code == 0 and "every need met" in proof.output
    lines = [line.split() for line in proof.output.splitlines() if "/console" in line]
    assert sorted(line[1] for line in lines) == ["/console", *(f"/console/{name}" for name in sorted(BESIDE))]
    assert {(line[0], line[2]) for line in lines} == {("GET,HEAD", "public")}


async def test_it_stays_on_the_public_listener(tmp_path: Path) -> None:
    edit = {"gateway.operations": {"port": 0}}
    gateway = with_console(tmp_path, edit)
    routes = [route for route in gateway.routes if route.path.startswith("/console")]
    assert len(routes) == 5 and {route.listener for route in routes} == {"public"}


# --- what the files hold ------------------------------------------------------------------------------------------


def text(name: str) -> str:
    return PAGE.joinpath(name).read_text()


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = text("index.html")
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == [] and "<style" not in page
    assert re.findall(r"\s(?:on\w+|style|srcdoc|action|formaction)=", page) == []
    names = [entry.name for entry in PAGE.iterdir() if entry.is_file()]
    assert sorted(names) == sorted(["index.html", *BESIDE])
    for name in names:
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|\burl\(|\bimport\(", text(name))
        assert [link for link in found if link != "http://www.w3.org"] == [], name
    assert re.findall(r'from "([^"]+)"', text("app.js") + text("api.js")) == ["./api.js"]


def test_no_text_becomes_html_and_no_key_is_kept() -> None:
    code = re.sub(r"(?<!:)//.*|/\*\*.*?\*/", "", text("app.js") + text("api.js"))
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function(",
                 "setHTML", "createContextualFragment", "srcdoc"):  # fmt: skip
        assert sink not in code, sink
    for store in ("localStorage", "sessionStorage", "indexedDB", "cookie", "caches", "history.", "postMessage"):
        assert re.search(rf"\b{re.escape(store)}", code) is None, store
    # An input without a name is in no address, whatever submits its form.
    assert " name=" not in re.sub(r'<meta name="[^"]+"', "", text("index.html"))


def test_every_label_has_its_field_and_every_field_its_label() -> None:
    page = text("index.html")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\b(?:for|aria-labelledby)="([^"]+)"', page)) <= set(ids)
    fields = re.findall(r'<(?:input|select|textarea)\b(?![^>]*type="checkbox")[^>]*\bid="([^"]+)"', page)
    assert fields and set(fields) <= set(re.findall(r'for="([^"]+)"', page))
    used = set(re.findall(r'(?:\$|\bon)\("([^"]+)"', text("app.js")))
    assert used <= set(ids), used - set(ids)


def test_it_stays_small() -> None:
    assert sum(len(text(name).splitlines()) for name in ("index.html", *BESIDE)) < 740


def test_each_call_of_the_page_is_a_documented_one(tmp_path: Path) -> None:
    calls = re.findall(r'^    (\w+): \["([A-Z]+)", "([^"]+)"\],$', text("api.js"), re.M)
    assert len(calls) >= 9
    document = json.loads(with_console(tmp_path).plugin("openapi")._written())
    for name, method, path in calls:
        operation = document["paths"].get(path, {}).get(method.lower())
        alias = document["paths"].get(f"/api{path}", {}).get(method.lower(), {})
        assert operation or f"Also at `{path}`" in alias.get("description", ""), (name, method, path)
    # No path is asked for but through that table.
    asks = re.findall(r'(?:read|ask)\(\$\("\w+"\), "(\w+)"|request\(root, "(\w+)"', text("app.js"))
    assert {a or b for a, b in asks} == {name for name, _, _ in calls}
    assert "/v1/" not in text("app.js") and (text("api.js") + text("app.js")).count("fetch(") == 1


def test_the_wheel_holds_all_of_it(tmp_path: Path) -> None:
    site = unpacked(ROOT, tmp_path)
    for name in ("index.html", *BESIDE):
        assert (site / "openclaw_plugins" / "console" / "page" / name).read_bytes() == PAGE.joinpath(name).read_bytes()


# --- what its script says and reads, by node ----------------------------------------------------------------------


def by_node(code: str) -> Any:
    """Run lines of JavaScript beside the module of the page; `tell` gives what comes back."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node is installed here")
    # By its text: a file without a package beside it may be taken for CommonJS.
    module = "data:text/javascript," + quote(text("api.js"))
    start = f"const api = await import({json.dumps(module)}); const tell = v => console.log(JSON.stringify(v));\n"
    done = subprocess.run(
        [node, "--input-type=module", "--eval", start + code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_curl_says_the_very_request_whatever_is_in_it(tmp_path: Path) -> None:
    nasty = "it's $HOME `id` \"q\" \\ !x\n%41 é 💡 '; exit 1; '"
    said = by_node(
        f"""
        const nasty = {json.dumps(nasty)};
        const asked = [
            api.request("http://h:1/gw/", "chat", {{ body: {{ model: "echo", messages: [{{ content: nasty }}] }} }}),
            api.request("http://h:1/gw/", "run", {{ path: {{ name: "a/b '?#" }}, body: {{ params: {{}} }} }}),
            api.request("http://h:1/", "sessions", {{ query: {{ limit: "20", cursor: "a'b&c=", status: "" }} }}),
            api.request("http://h:1/", "remove", {{ path: {{ session_id: "x" }} }}),
        ];
        tell(asked.map(one => [one, api.curl(one)]));
        """
    )
    for request, line in said:
        assert "Bearer $KEY" in line
        shown = subprocess.run(
            ["sh", "-c", f"curl() {{ for a; do printf '%s\\0' \"$a\"; done; }}\nKEY=sesame\n{line}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout.split("\0")[:-1]
        expected = [request["url"], "-H", "Authorization: Bearer sesame"]
        expected = ["-sN", *(["-X", "DELETE"] if request["method"] == "DELETE" else []), *expected]
        if "body" in request:
            expected += ["-H", "Content-Type: application/json", "-d", request["body"]]
        assert shown == expected
    assert json.loads(said[0][0]["body"])["messages"][0]["content"] == nasty
    assert [request["url"] for request, _ in said] == [
        "http://h:1/gw/v1/chat/completions",
        "http://h:1/gw/api/v1/skills/a%2Fb%20'%3F%23/execute",
        "http://h:1/api/v1/sessions?limit=20&cursor=a%27b%26c%3D",
        "http://h:1/api/v1/sessions/x",
    ]


def test_events_are_read_however_they_are_cut() -> None:
    stream = ': alive\r\n\r\ndata: {"a":"é💡"}\r\n\r\ndata: one\ndata: two\n\nevent: x\ndata:three\n\ndata: unfinished'
    said = by_node(
        f"""
        const bytes = new TextEncoder().encode({json.dumps(stream)});
        const all = [];
        for (let size = 1; size < 40; size++) {{
            const pieces = new ReadableStream({{ start(to) {{
                for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
                to.close();
            }} }});
            const heard = [];
            for await (const data of api.events(pieces)) heard.push(data);
            all.push(JSON.stringify(heard));
        }}
        tell([...new Set(all)]);
        """
    )
    assert [json.loads(one) for one in said] == [['{"a":"é💡"}', "one\ntwo", "three"]]


def test_a_stream_is_whole_only_where_it_says_so() -> None:
    chunk = {"choices": [{"delta": {"content": "hi"}, "finish_reason": None}]}
    call = {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}
    last = {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"prompt_tokens": 2}}
    failed = {"error": {"code": "UPSTREAM_ERROR", "message": "gone"}}
    said = by_node(
        f"""
        const through = (...data) => data.reduce((all, one) => {{
            const state = api.heard(all.state, one);
            return {{ state, text: all.text + state.text }};
        }}, {{ state: {{}}, text: "" }});
        const [chunk, call, last, failed] = {json.dumps([chunk, call, last, failed])}.map(one => JSON.stringify(one));
        tell([through(chunk, call, last, "[DONE]"), through(chunk, failed), through(chunk)]);
        """
    )
    whole, broken, cut = said
    assert whole["text"] == "hi\n[call of f] {}"
    assert whole["state"] == {"whole": True, "text": "", "usage": {"prompt_tokens": 2}, "reason": "length"}
    assert broken["state"]["error"] == failed["error"] and "whole" not in broken["state"]
    assert "whole" not in cut["state"] and "error" not in cut["state"]


def test_a_refusal_is_told_as_its_body_says_it() -> None:
    limit = {"name": "quota.messages", "resetsAt": "2026-12-01T00:00:00Z"}
    error = {"code": "RATE_LIMIT_EXCEEDED", "message": "used up", "requestId": "r1", "limit": limit}
    wrong = {"problems": [{"param": "params.q", "message": "expected string"}]}
    said = by_node(
        f"""
        const headers = {{ "retry-after": "7", "x-request-id": "r2", "ratelimit": "x", "via": "b" }};
        const refused = new Response({json.dumps(json.dumps({"error": error}))}, {{ status: 429, headers }});
        const elsewhere = new Response("<h1>Bad gateway</h1>", {{ status: 502 }});
        const wrong = new Response({json.dumps(json.dumps({"error": wrong}))}, {{ status: 400 }});
        const named = api.headersOf(refused).map(([name]) => name);
        tell([await api.problem(refused), await api.problem(elsewhere), await api.problem(wrong), named]);
        """
    )
    refused, elsewhere, misfit, named = said
    assert (refused["status"], refused["code"], refused["message"]) == (429, "RATE_LIMIT_EXCEEDED", "used up")
    assert (refused["requestId"], refused["retryAfter"], refused["resetsAt"]) == ("r1", 7, limit["resetsAt"])
    assert elsewhere["status"] == 502 and "none of the gateway's" in elsewhere["message"]
    assert misfit["problems"] == ["params.q: expected string"]
    assert named == ["ratelimit", "retry-after", "x-request-id"]


def test_times_parameters_and_the_id_of_a_key_are_told() -> None:
    schema = {
        "required": ["q", "n", "m", "on"],
        "properties": {"q": {"type": "string"}, "n": {"type": "integer", "default": 5}, "m": {"enum": ["a", "b"]},
                       "on": {"type": "boolean"}, "left": {"type": "string"}},
    }  # fmt: skip
    said = by_node(
        f"""
        const now = Date.parse("2026-11-29T00:00:00Z");
        const at = seconds => api.until(new Date(now + seconds * 1000).toISOString(), now);
        tell([[-1, 0, 1.2, 119, 600, 7200, 200000].map(at), api.skeleton({json.dumps(schema)}), api.skeleton({{}}),
            api.keyId("ocg_0123456789Ab_secret"), api.keyId("eyJ.a.b")]);
        """
    )
    times, skeleton, empty, of_key, of_token = said
    assert times == ["now", "now", "in 2 s", "in 119 s", "in 10 min", "in 2 h", "on 2026-12-01"]
    assert skeleton == {"q": "", "n": 5, "m": "a", "on": False} and empty == {}
    assert (of_key, of_token) == ("0123456789Ab", "")
