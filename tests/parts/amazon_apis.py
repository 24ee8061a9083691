"""Amazon's APIs by moto, each call with its service, region and action."""

import json
import re
import urllib.parse

from answers import Answer, Request


class AmazonApis:
    def __init__(self, url):
        self.url = url

    def named(self, request):
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/", request.headers["Authorization"])
        return {"host": f"{scope[2]}.amazonaws.com", "region": scope[1], "action": self.action(request)}

    def action(self, request):
        if target := request.headers.get("X-Amz-Target"):
            return target.rpartition(".")[2]
        form = urllib.parse.parse_qs(request.body.decode(errors="replace")) if "urlencoded" in request.headers.get("Content-Type", "") else {}
        return form.get("Action", [""])[0]

    def changes(self, request):
        action = self.action(request)
        if action:
            return not action.startswith(("Get", "List", "Describe", "Head", "Lookup"))
        return request.method not in ("GET", "HEAD")

    def answer(self, request):
        return request.forward(self.url)

    def state(self):
        answer = Request("GET", "", "/moto-api/data.json", {}, b"").forward(self.url)
        return {"amazon": json.loads(answer.body)}
