"""Host and path router: flat cost in the number of routes and of hosts.

WHAT
    Patterns for the host: exact (`api.example.com`), wildcard (`*.example.com`: one or more labels), None (any).
    Patterns for the path: literal `/a/b`; parameters `/orders/{id}` (one whole, non-empty segment); tail `/api/{rest...}` and
    prefix `/static/*` (everything after that slash, including nothing; `/static` itself is not matched); regex `~^/v\\d+/x$`
    (Python re, searched; named groups are parameters).
    The most specific candidate that accept() accepts wins. The order, best first:
      1. host: exact > longest wildcard suffix > any;
      2. path: literal > parameters (segment by segment, left to right, literal before parameter) > regex (in the order in which
         each expression was first added) > tail and prefix (longest first, then literal before parameter);
      3. number of predicates, more first;   4. the order in which they were added.
    If accept() rejects a candidate the next one is tried, across all of 1 to 4 (backtracking).
    The path is matched as given: normalized by the caller, percent-encoded where required, without the query. Literal text in
    a pattern is converted to the same form (UTF-8, percent-encoded where required, upper-case hex, unreserved characters
    decoded).

STATE  (built by freeze(), never changed afterwards)
    hosts    : text -> bucket                    buckets[b]: root node, regexes, has_literals
    literals : (bucket, whole path) -> leaf      leaves[l] : first, count  ->  leaf_routes[first .. first + count)
    edges    : (node, segment)      -> node      nodes[n]  : param_child, terminal leaf, tail leaf
    Three open-addressing tables (load <= 1/2, linear probing) share one text arena.

WHO WRITES
    Only freeze(). find() writes only its own stack and *out, so any number of threads may share a router under the GIL.

COST
    One probe for the host, one for the whole path, then one per segment; only patterns that differ from segment to segment in both
    a literal and a parameter cause backtracking, and then at most once per node of the trie. A regex costs a Python `re` search
    and is reached only if nothing more specific matched. 10 000 routes: about 150 bytes each. benchmarks/core/bench_router.py.

SOURCES
    Go net/http.ServeMux patterns (1.22) for the syntax; httprouter and RFC 3986 sections 2.3, 3.3, 6.2.2 for the text.
"""

from fastgate._core.http.patterns import compile_host, compile_pattern

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_Check
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastgate._core.arguments cimport int_argument
from fastgate._core.debug cimport debug_live_add, debug_live_count
from fastgate._core.http.route cimport leaf_of, plant
from fastgate._core.shm.texttable cimport reversed_hash, table_allocate, table_find, table_insert, text_hash

__all__ = ["Match", "Router"]

cdef enum:
    EXACT = 0
    WILDCARD = 1
    MAX_LABELS = 127        # RFC 1035: 253 octets of text cannot hold more dots
    MAX_SPLIT = ROUTER_MAX_SEGMENTS + 1

ctypedef struct search_t:
    const char* path
    Py_ssize_t path_n
    int32_t count                   # segments; MAX_SPLIT also means "more than any pattern has"; -1 = not split yet
    uint64_t tails                  # bit d: a tail pattern starts at segment d
    accept_t accept
    void* arg
    int32_t starts[MAX_SPLIT]
    int32_t lengths[MAX_SPLIT]


cdef void release(Router self) noexcept:
    """Frees what freezing() built."""
    free(self._leaf_routes)
    free(self._leaves)
    free(self._nodes)
    free(self._buckets)
    free(self._hosts.slots)
    free(self._literals.slots)
    free(self._edges.slots)
    free(self._arena)
    self._leaf_routes = NULL
    self._leaves = NULL
    self._nodes = NULL
    self._buckets = NULL
    self._arena = NULL
    self._hosts.slots = self._literals.slots = self._edges.slots = NULL


# --- the classes -----------------------------------------------------------------------------------------------------------

@cython.final
cdef class Match:
    """The route that matched, and the values of its parameters. Created by Router.match()."""

    def __init__(self):
        raise TypeError("a Match is created by Router.match()")

    cdef Route matched(self):
        if self.route is None:
            raise TypeError("a Match is created by Router.match()")
        return self.route

    @property
    def value(self):
        """The value given to Router.add()."""
        return self.matched().value

    @property
    def params(self):
        """{name: text}, percent-encoded as in the path. A regex group that did not participate gives ''."""
        cdef Route route = self.matched()
        cdef bytes path = self._path if PyBytes_Check(self._path) else (<str?>self._path).encode("utf-8")
        cdef dict params = {}
        cdef Py_ssize_t index
        cdef span_t* span
        for index in range(self._spans.count):
            span = &self._spans.params[index]
            text = PyBytes_FromStringAndSize(PyBytes_AS_STRING(path) + span.start, span.length)
            params[(<bytes>route.param_names[index]).decode("ascii")] = text.decode("utf-8", "surrogateescape")
        return params

    def __repr__(self):
        return f"<Match {self.matched()!r} params={self.params!r}>"


cdef class _Caller:
    """Carries a Python accept() through the C callback, and its exception back."""
    cdef object call
    cdef object error
    cdef list seen


cdef bint _accept_python(void* arg, Route route) noexcept:
    cdef _Caller caller = <_Caller>arg
    if caller.error is not None:
        return True     # stop the search; match() raises
    try:
        return bool(caller.call(route))
    except BaseException as error:
        caller.error = error
        return True


cdef bint _collect(void* arg, Route route) noexcept:
    (<_Caller>arg).seen.append(route)
    return False


@cython.final
cdef class Router:
    """Router()\n--\n
    Finds the most specific route for a host and a path; see the top of this module for the order.

    add() every pattern, freeze() once, then match(). A frozen router never changes.
    """

    def __cinit__(self):
        debug_live_add(1)
        self._routes = []
        self._any_bucket = -1

    def __dealloc__(self):
        debug_live_add(-1)
        release(self)

    def __len__(self):
        return len(self._routes)

    @property
    def routes(self):
        """Every Route, in the order in which they were added."""
        return tuple(self._routes)

    def add(self, pattern, value=None, *, host=None, predicates=0):
        """Adds a pattern and returns its Route.

        predicates: number of further conditions (method, header, query) that the caller's accept() checks, >= 0; among equal
        patterns the one with more is tried first. Equal patterns are allowed.
        ValueError has the pattern and the position of the error; RuntimeError after freeze(). Nothing is added then.
        """
        cdef Route route
        cdef Py_ssize_t index
        if self._sealed:
            raise RuntimeError("the router is frozen")
        if not isinstance(pattern, str):
            raise TypeError(f"pattern: expected str, got {type(pattern).__name__}")
        int_argument(predicates, "predicates", 0, 1_000_000)
        route = Route.__new__(Route)
        route.host = compile_host(host)
        compiled = compile_pattern(pattern, ROUTER_MAX_PARAMS, ROUTER_MAX_SEGMENTS)
        route.kind = compiled.kind
        route.param_names = compiled.param_names
        route._segments = compiled.segments
        route._regex = compiled.regex
        route._groups = compiled.groups
        route._tail = compiled.tail
        route._tail_named = compiled.tail_named
        for index, segment in enumerate(compiled.segments):
            if segment is None:
                route._param_segments[route._param_count] = <uint8_t>index
                route._param_count += 1
        route.pattern = pattern
        route.value = value
        route.predicates = predicates
        route.order = len(self._routes)
        self._routes.append(route)
        return route

    def freeze(self):
        """Builds the tables; add() raises from now on. A second call does nothing."""
        for _ in self.freezing(len(self._routes) + 1):
            pass

    def freezing(self, every=64):
        """freeze() in steps: an iterator that yields after every `every` routes (64 take about 0.3 ms), for use in an event loop.

        The router is frozen when the iterator ends; add() raises from its first step. An abandoned iteration must be restarted.
        """
        if self.frozen:
            return
        self._sealed = True
        release(self)
        cdef dict buckets = {}          # host -> index
        cdef dict literals = {}         # (bucket, path) -> [Route]
        cdef dict edges = {}            # (node, segment) -> node
        cdef list nodes = []            # [param_child, terminal routes, tail routes, has_edges]
        cdef list bucket_rows = []      # [root, {regex: [Route]}, has_literals]
        cdef list row, leaves = [], order = [], regexes = []
        cdef Route route
        cdef Py_ssize_t index, steps = 0, step = int_argument(every, "every", 1, 1 << 40)
        for route in self._routes:
            plant(route, buckets, literals, edges, nodes, bucket_rows)
            steps += 1
            if steps % step == 0:
                yield
        cdef bytearray arena = bytearray()
        self._nodes = <node_t*>calloc(max(1, len(nodes)), sizeof(node_t))
        self._buckets = <bucket_t*>calloc(max(1, len(bucket_rows)), sizeof(bucket_t))
        self._leaf_routes = <PyObject**>calloc(max(1, len(self._routes)), sizeof(PyObject*))
        if self._nodes == NULL or self._buckets == NULL or self._leaf_routes == NULL:
            raise MemoryError()
        for index in range(len(nodes)):
            row = nodes[index]
            self._nodes[index].param_child = row[0]
            self._nodes[index].terminal = leaf_of(leaves, order, row[1])
            self._nodes[index].tail = leaf_of(leaves, order, row[2])
            self._nodes[index].has_edges = row[3]
            if index % (4 * step) == 0:
                yield
        for index in range(len(bucket_rows)):
            row = bucket_rows[index]
            self._buckets[index].root = row[0]
            self._buckets[index].has_literals = row[2]
            self._buckets[index].regexes = -1
            if row[1] is not None:
                self._buckets[index].regexes = <int32_t>len(regexes)
                regexes.append([(routes[0], leaf_of(leaves, order, routes)) for routes in row[1].values()])
            if index % step == 0:
                yield
        table_allocate(&self._literals, len(literals))
        for key, routes in literals.items():
            table_insert(&self._literals, key[0], key[1], leaf_of(leaves, order, routes), False, arena)
            steps += 1
            if steps % step == 0:
                yield
        table_allocate(&self._edges, len(edges))
        for key, child in edges.items():
            table_insert(&self._edges, key[0], key[1], child, False, arena)
            steps += 1
            if steps % step == 0:
                yield
        self._wildcard_labels = 0
        table_allocate(&self._hosts, len(buckets))
        for host, bucket in buckets.items():
            steps += 1
            if steps % step == 0:
                yield
            if host is None:
                self._any_bucket = bucket
            elif host.startswith("*"):
                suffix = host[1:].encode("ascii")
                table_insert(&self._hosts, WILDCARD, suffix, bucket, True, arena)
                self._wildcard_labels = max(self._wildcard_labels, suffix.count(b"."))
            else:
                table_insert(&self._hosts, EXACT, host.encode("ascii"), bucket, False, arena)
        self._leaves = <leaf_t*>calloc(max(1, len(leaves)), sizeof(leaf_t))
        self._arena = <char*>calloc(max(1, len(arena)), 1)
        if self._leaves == NULL or self._arena == NULL:
            raise MemoryError()
        for index in range(len(leaves)):
            self._leaves[index].first, self._leaves[index].count = leaves[index]
        memcpy(self._arena, <char*>arena, len(arena))
        for index in range(len(order)):
            self._leaf_routes[index] = <PyObject*>order[index]
        self._order = order
        self._regexes = regexes
        self.frozen = True

    def match(self, host, path, accept=None):
        """The Match for this host and path, or None.

        host: lower case, without the port; None or "" if there is none. path: see the top of this module. str or bytes.
        accept(route) -> bool: False means "try the next best". Its exception propagates. RuntimeError before freeze().
        """
        cdef const char* host_text = NULL
        cdef const char* path_text = NULL
        cdef Py_ssize_t host_n = 0, path_n = 0
        cdef Match match
        cdef Route route
        cdef _Caller caller
        if not self.frozen:
            raise RuntimeError("freeze() the router before match()")
        _text(host, "host", True, &host_text, &host_n)
        _text(path, "path", False, &path_text, &path_n)
        match = Match.__new__(Match)
        if accept is None:
            route = self.find(host_text, host_n, path_text, path_n, NULL, NULL, &match._spans)
        else:
            if not callable(accept):
                raise TypeError(f"accept: expected a callable or None, got {type(accept).__name__}")
            caller = _Caller()
            caller.call = accept
            route = self.find(host_text, host_n, path_text, path_n, _accept_python, <void*>caller, &match._spans)
            if caller.error is not None:
                raise caller.error
        if route is None:
            return None
        match.route = route
        match._path = path
        return match

    def candidates(self, host, path):
        """Every Route that matches this host and path, best first: the order in which match() tries them."""
        cdef const char* host_text = NULL
        cdef const char* path_text = NULL
        cdef Py_ssize_t host_n = 0, path_n = 0
        cdef _Caller caller = _Caller()
        if not self.frozen:
            raise RuntimeError("freeze() the router before candidates()")
        _text(host, "host", True, &host_text, &host_n)
        _text(path, "path", False, &path_text, &path_n)
        caller.seen = []
        self.find(host_text, host_n, path_text, path_n, _collect, <void*>caller, NULL)
        return caller.seen

    cdef Route find(self, const char* host, Py_ssize_t host_n, const char* path, Py_ssize_t path_n,
                    accept_t accept, void* arg, match_t* out):
        """The best accepted Route, or None; *out (may be NULL) gets the parameters. accept may be NULL."""
        cdef search_t search
        cdef uint64_t hashes[MAX_LABELS]
        cdef int32_t starts[MAX_LABELS]
        cdef int32_t labels = 0, bucket
        cdef uint64_t hash
        cdef Py_ssize_t at
        cdef Route route
        if not self.frozen or self._order is None or path_n > 0x7FFFFFFF:
            return None
        search.path = path
        search.path_n = path_n
        search.count = -1
        search.accept = accept
        search.arg = arg
        if out != NULL:
            out.count = 0
        if self._hosts.slots != NULL and 0 < host_n <= 0xFFFF:
            bucket = table_find(&self._hosts, EXACT, text_hash(host, host_n, EXACT), host, host_n, self._arena)
            if bucket >= 0:
                route = search_bucket(self, bucket, &search, out)
                if route is not None:
                    return route
            if self._wildcard_labels:
                hash = <uint64_t>0xCBF29CE484222325
                at = host_n
                while at > 1 and labels < self._wildcard_labels:
                    at -= 1
                    hash = reversed_hash(hash, <unsigned char>host[at])
                    if host[at] == c".":
                        hashes[labels] = hash | 1
                        starts[labels] = <int32_t>at
                        labels += 1
                while labels > 0:
                    labels -= 1
                    bucket = table_find(&self._hosts, WILDCARD, hashes[labels], host + starts[labels],
                                        host_n - starts[labels], self._arena)
                    if bucket >= 0:
                        route = search_bucket(self, bucket, &search, out)
                        if route is not None:
                            return route
        if self._any_bucket >= 0:
            return search_bucket(self, self._any_bucket, &search, out)
        return None


cdef Route search_bucket(Router self, int32_t index, search_t* search, match_t* out):
    """The best accepted Route among the patterns of one host."""
    cdef bucket_t* bucket = &self._buckets[index]
    cdef PyObject* found = NULL
    cdef int32_t leaf, depth
    cdef Route route
    if bucket.has_literals:
        leaf = table_find(&self._literals, index, text_hash(search.path, search.path_n, index),
                          search.path, search.path_n, self._arena)
        if leaf >= 0:
            found = try_leaf(self, leaf, search)
            if found != NULL:
                return <Route>found
    search.tails = 0
    if bucket.root >= 0 and search.path_n > 0 and search.path[0] == c"/":
        if search.count < 0:
            split(search)
        found = walk(self, bucket.root, 0, search)
        if found != NULL:
            if out != NULL:
                fill(<Route>found, search, out)
            return <Route>found
    if bucket.regexes >= 0:
        route = search_regexes(self, bucket.regexes, search, out)
        if route is not None:
            return route
    depth = ROUTER_MAX_SEGMENTS
    while search.tails != 0:
        if search.tails >> depth & 1:
            search.tails ^= <uint64_t>1 << depth
            found = walk_to(self, bucket.root, 0, depth, search)
            if found != NULL:
                if out != NULL:
                    fill(<Route>found, search, out)
                return <Route>found
        depth -= 1
    return None


cdef PyObject* try_leaf(Router self, int32_t leaf, search_t* search) noexcept:
    """The first accepted Route of the leaf, borrowed, or NULL."""
    cdef int32_t at = self._leaves[leaf].first
    cdef int32_t end = at + self._leaves[leaf].count
    if search.accept == NULL:
        return self._leaf_routes[at]
    while at < end:
        if search.accept(search.arg, <Route>self._leaf_routes[at]):
            return self._leaf_routes[at]
        at += 1
    return NULL


cdef PyObject* walk(Router self, int32_t node, int32_t depth, search_t* search) noexcept:
    """Depth first, literal before parameter, to the patterns that end with the path; records the tails on the way."""
    cdef node_t* here = &self._nodes[node]
    cdef PyObject* found
    if depth == search.count:
        return try_leaf(self, here.terminal, search) if here.terminal >= 0 else NULL
    if here.tail >= 0:
        search.tails |= <uint64_t>1 << depth
    cdef int32_t child = edge(self, node, depth, search)
    if child >= 0:
        found = walk(self, child, depth + 1, search)
        if found != NULL:
            return found
    if here.param_child >= 0 and search.lengths[depth] > 0:
        return walk(self, here.param_child, depth + 1, search)
    return NULL


cdef PyObject* walk_to(Router self, int32_t node, int32_t depth, int32_t target, search_t* search) noexcept:
    """The same traversal to the tails that start at segment target."""
    cdef node_t* here = &self._nodes[node]
    cdef PyObject* found
    if depth == target:
        return try_leaf(self, here.tail, search) if here.tail >= 0 else NULL
    cdef int32_t child = edge(self, node, depth, search)
    if child >= 0:
        found = walk_to(self, child, depth + 1, target, search)
        if found != NULL:
            return found
    if here.param_child >= 0 and search.lengths[depth] > 0:
        return walk_to(self, here.param_child, depth + 1, target, search)
    return NULL


cdef inline int32_t edge(Router self, int32_t node, int32_t depth, search_t* search) noexcept:
    cdef const char* text = search.path + search.starts[depth]
    if not self._nodes[node].has_edges:
        return -1
    return table_find(&self._edges, node, text_hash(text, search.lengths[depth], node), text,
                      search.lengths[depth], self._arena)


cdef Route search_regexes(Router self, int32_t index, search_t* search, match_t* out):
    cdef bytes path = PyBytes_FromStringAndSize(search.path, search.path_n)
    cdef Route first
    cdef PyObject* found
    cdef int32_t leaf, at
    for first, leaf in <list>self._regexes[index]:
        match = first._regex.search(path)
        if match is None:
            continue
        found = try_leaf(self, leaf, search)
        if found == NULL:
            continue
        if out != NULL:
            at = 0
            for group in first._groups:
                start, end = match.span(group)
                out.params[at].start = max(0, start)
                out.params[at].length = end - start
                at += 1
            out.count = at
        return <Route>found
    return None


cdef void split(search_t* search) noexcept nogil:
    """Cuts the path, which starts with a slash, into segments; stops after one more than any pattern has."""
    cdef Py_ssize_t at = 1, start = 1
    search.count = 0
    while True:
        if at == search.path_n or search.path[at] == c"/":
            search.starts[search.count] = <int32_t>start
            search.lengths[search.count] = <int32_t>(at - start)
            search.count += 1
            if at == search.path_n or search.count == MAX_SPLIT:
                return
            start = at + 1
        at += 1


cdef void fill(Route route, search_t* search, match_t* out) noexcept:
    """Writes the positions of the route's parameters in the path."""
    cdef int32_t index, segment
    for index in range(route._param_count):
        segment = route._param_segments[index]
        out.params[index].start = search.starts[segment]
        out.params[index].length = search.lengths[segment]
    out.count = route._param_count
    if route._tail_named:
        out.params[out.count].start = search.starts[route._tail]
        out.params[out.count].length = <int32_t>search.path_n - search.starts[route._tail]
        out.count += 1


cdef int _text(object value, str name, bint optional, const char** text, Py_ssize_t* n) except -1:
    if PyUnicode_Check(value):
        text[0] = PyUnicode_AsUTF8AndSize(value, n)
    elif PyBytes_Check(value):
        text[0] = PyBytes_AS_STRING(value)
        n[0] = PyBytes_GET_SIZE(value)
    elif value is not None or not optional:
        raise TypeError(f"{name}: expected str or bytes, got {type(value).__name__}")
    return 0


def live_objects():
    """How many routers are alive; -1 unless built with FASTGATE_DEBUG=1."""
    return debug_live_count()
