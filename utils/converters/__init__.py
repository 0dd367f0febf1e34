"""Annotations of other programs -> images/, labels/, lists of images, .names, .data, a report and an image.

A format is one entry of formats.FORMATS: `read` lists the images of a source folder and their annotations, `parse`
makes boxes of one annotation; everything else is the same for all:

    FORMATS[name].read(source, options) -> Annotations of Entry     which image, which annotation, which splits
    examine(entry)                      -> Examined                 in parallel: parse, measure the image, clip, drop
    write.convert                       -> Report                   class ids, links, labels, lists, .data
"""
