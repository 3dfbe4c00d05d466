"""The settings of the crawl guard as it takes them. Reads nothing."""

from __future__ import annotations

from outputd.config.settings import Crawl
from outputd.drive.crawl import CrawlOptions, Mode


def crawl_options(crawl: Crawl) -> CrawlOptions:
    return CrawlOptions(Mode(crawl.mode), crawl.files, crawl.bytes, crawl.window, crawl.allow, crawl.deny)
