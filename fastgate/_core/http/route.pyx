"""A route of the router, and the sorting of routes into the rows from which the router builds its tables.

Patterns are compiled by patterns.py. Everything here runs when a router is built, never for a request.
"""

cimport cython
from libc.stdint cimport int32_t

__all__ = ["Route"]


@cython.final
cdef class Route:
    """One pattern in a router, and the caller's value. Made by Router.add()."""

    def __init__(self):
        raise TypeError("a Route is made by Router.add()")

    def __repr__(self):
        return f"<Route {self.host or '*'} {self.pattern} predicates={self.predicates}>"


cdef int plant(Route route, dict buckets, dict literals, dict edges, list nodes, list bucket_rows) except -1:
    """Adds one route to the dictionaries from which Router.freezing() builds the tables."""
    cdef list row
    bucket = buckets.get(route.host)
    if bucket is None:
        bucket = buckets[route.host] = len(bucket_rows)
        bucket_rows.append([-1, None, False])
    row = bucket_rows[bucket]
    if route.kind == "literal":
        literals.setdefault((bucket, route._segments[0]), []).append(route)
        row[2] = True
        return 0
    if route.kind == "regex":
        if row[1] is None:
            row[1] = {}
        row[1].setdefault(route.pattern, []).append(route)
        return 0
    if row[0] < 0:
        row[0] = len(nodes)
        nodes.append([-1, None, None, False])
    node = row[0]
    for segment in route._segments:
        if segment is None:
            child = nodes[node][0]
            if child < 0:
                child = nodes[node][0] = len(nodes)
                nodes.append([-1, None, None, False])
        else:
            child = edges.get((node, segment))
            if child is None:
                child = edges[node, segment] = len(nodes)
                nodes.append([-1, None, None, False])
                nodes[node][3] = True
        node = child
    row = nodes[node]
    index = 1 if route._tail < 0 else 2
    if row[index] is None:
        row[index] = []
    row[index].append(route)
    return 0


cdef int32_t leaf_of(list leaves, list order, list routes) except -2:
    """Appends the routes, best first, and returns the number of their leaf; -1 for None."""
    if routes is None:
        return -1
    if len(routes) > 1:
        routes.sort(key=_rank)
    leaves.append((len(order), len(routes)))
    order.extend(routes)
    return <int32_t>(len(leaves) - 1)


def _rank(Route route):
    return (-route.predicates, route.order)
