package blob

const diskFull = errDiskFull
