// Of these two the viewer needs a function each, and no package of types.
declare module 'd3-scale-chromatic';
declare module 'react-dom/client';
