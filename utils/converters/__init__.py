"""Annotations of other programs -> images/, labels/, lists of pictures, .names, .data, a report and a picture.

A format is one entry of formats.FORMATS: `read` lists the pictures of a source folder and their annotations, `parse`
makes boxes of one annotation; everything else is the same for all:

    FORMATS[name].read(source, options) -> Annotations of Entry     which picture, which annotation, which splits
    examine(entry)                      -> Examined                 in parallel: parse, measure the picture, clip, drop
    write.convert                       -> Report                   class ids, links, labels, lists, .data
"""
